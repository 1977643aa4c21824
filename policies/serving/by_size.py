"""Draft lengths by the number of requests in the batch: what vLLM and TensorRT-LLM are told.

* vLLM, `num_speculative_tokens_per_batch_size`: `[[1, 4, 5], [5, 16, 2]]`, first and last size
  and the length. Its documentation does not say what is done above the last.
* TensorRT-LLM, `draft_len_schedule`: `{4: 5, 16: 2}`, the last size and the length, and 0 above.

Both say the same: a length for every size up to a bound. Here it is 0 above the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.rule import Batch, Ints, Ladder, ServingRule

TENSORRT_EXAMPLE = {4: 4, 8: 2, 32: 1}
"""The schedule in TensorRT-LLM's documentation."""


class LengthBySize(ServingRule):
    """A draft length for everybody, by the size of the batch.

    Args:
        ladder: An arm for every length.
        schedule: Length by the largest size that it is for; 0 for larger batches.
        name: How tables call it.

    Raises:
        DraftgymError: A length that the ladder lacks, a size below 1, or no entry.

    Attributes:
        schedule: As given, ascending.
    """

    def __init__(self, ladder: Ladder, schedule: Mapping[int, int], name: str = "by size") -> None:
        if not schedule or min(schedule) < 1:
            raise DraftgymError(f"a schedule of {dict(schedule)}", "give sizes from 1 on")
        ladder.require(list(schedule.values()))
        self.ladder, self.name, self.arms = ladder, name, tuple(ladder.arms.values())
        self.schedule = dict(sorted(schedule.items()))
        self._bounds = np.array(list(self.schedule))
        self._lengths = np.array([*self.schedule.values(), 0])

    @classmethod
    def from_vllm(
        cls, ladder: Ladder, table: Sequence[Sequence[int]], name: str = "vllm"
    ) -> LengthBySize:
        """Reads vLLM's table: first size, last size and length of each entry.

        Raises:
            DraftgymError: Entries that do not follow each other from 1 on.
        """
        expected = 1
        for entry in table:
            if len(entry) != 3 or entry[0] != expected or entry[1] < entry[0]:
                raise DraftgymError(
                    f"an entry {list(entry)} behind sizes up to {expected - 1}",
                    "write [first size, last size, length], one behind the other from 1 on",
                )
            expected = entry[1] + 1
        return cls(ladder, {last: length for _, last, length in table}, name)

    def to_vllm(self) -> list[list[int]]:
        """The same as vLLM's table."""
        starts = [1, *(bound + 1 for bound in self.schedule)]
        return [
            [start, *entry] for start, entry in zip(starts, self.schedule.items(), strict=False)
        ]

    def choose(self, batch: Batch) -> Ints:
        """See `ServingRule`."""
        lengths = self._lengths[np.searchsorted(self._bounds, batch.size)]
        return np.broadcast_to(self.ladder.index(lengths)[:, None], batch.deciding.shape)
