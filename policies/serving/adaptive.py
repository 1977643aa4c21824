"""SGLang's adaptive draft length: an average of accepted tokens, with hysteresis, by batch size.

For each of some batch sizes there are candidate lengths. The average `a` of accepted tokens per
request moves by `alpha` every round, and every few rounds the length steps down while
`a <= shorter - 0.5 + down`, or else up while `a > this - 0.5 + up`. Length 0 is reached at
`a <= 0.5 + down` and left again at the next decision, to see whether drafting pays. That is the
rule of release 0.5.23 (`--speculative-adaptive`); a round belongs to the largest of the sizes that
is not larger than its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.rule import Batch, Ints, Ladder, Outcome, ServingRule


@dataclass(frozen=True)
class AdaptiveSize:
    """What is configured for a batch size.

    Attributes:
        candidates: Draft lengths.
        up: Added to the threshold of a longer one.
        down: Added to that of a shorter one.
        ceiling: No longer than this times the average, when stepping down; 0 for no such limit.
        alpha: Weight of the newest round.
        interval: Rounds between decisions.
        warmup: Rounds before the first.
    """

    candidates: tuple[int, ...]
    up: float = 0.0
    down: float = -0.25
    ceiling: float = 0.0
    alpha: float = 0.2
    interval: int = 5
    warmup: int = 10


SGLANG = {
    1: AdaptiveSize((1, 3, 5, 7)),
    8: AdaptiveSize((0, 1, 3), down=0.0),
    32: AdaptiveSize((0, 1), down=0.0),
    64: AdaptiveSize((0,), down=0.0),
}
"""What SGLang 0.5.23 does unless told otherwise."""


class AdaptiveLength(ServingRule):
    """A draft length for everybody, by what was accepted lately.

    Args:
        ladder: An arm for every length. Where it is a cascade, rounds that the lookup served say
            nothing of the drafter behind it.
        sizes: Configuration by batch size.
        name: How tables call it.
        drafters: Names of the drafters of `Outcome.verified`, in order.

    Raises:
        DraftgymError: A candidate that the ladder lacks, or no size.

    Attributes:
        sizes: As given, ascending.
    """

    def __init__(
        self,
        ladder: Ladder,
        drafters: tuple[str, ...],
        sizes: Mapping[int, AdaptiveSize] = SGLANG,
        name: str = "adaptive",
    ) -> None:
        if not sizes:
            raise DraftgymError("no batch size", "configure one at least")
        for size in sizes.values():
            ladder.require(size.candidates)
        self.ladder, self.name, self.arms = ladder, name, tuple(ladder.arms.values())
        self.sizes = dict(sorted(sizes.items()))
        self._keys = np.array(list(self.sizes))
        self._column = drafters.index(ladder.drafter)
        self.begin(1)

    def begin(self, servers: int) -> None:
        """See `ServingRule`."""
        self._slots = [[_Slot(one) for one in self.sizes.values()] for _ in range(servers)]

    def choose(self, batch: Batch) -> Ints:
        """See `ServingRule`."""
        slots = zip(self._slots, self._route(batch), strict=True)
        lengths = np.array([of_server[slot].length for of_server, slot in slots])
        return np.broadcast_to(self.ladder.index(lengths)[:, None], batch.deciding.shape)

    def learn(self, batch: Batch, arms: Ints, outcome: Outcome) -> None:
        """See `ServingRule`."""
        mine = outcome.verified[..., self._column] & batch.deciding
        accepted = np.where(mine, outcome.accepted, 0).sum(-1) / np.maximum(mine.sum(-1), 1)
        drafted = np.asarray(mine.any(-1))
        told = zip(self._slots, self._route(batch), accepted, drafted, batch.size, strict=True)
        for of_server, slot, mean, anybody, size in told:
            if size:
                of_server[slot].update(float(mean), bool(anybody))

    def _route(self, batch: Batch) -> Ints:
        """Which configuration is for each batch `[n]`."""
        return np.maximum(np.searchsorted(self._keys, batch.size, side="right") - 1, 0)


class _Slot:
    """The state of one batch size of one server."""

    def __init__(self, size: AdaptiveSize) -> None:
        self._size, self._steps = size, sorted(set(size.candidates))
        self._at = len(self._steps) // 2
        self._average, self._rounds = self.length - 1.0, 0

    @property
    def length(self) -> int:
        """The draft length of now."""
        return self._steps[self._at]

    def update(self, accepted: float, drafted: bool) -> None:
        """Takes a round in: mean accepted tokens of those who drafted, if anybody did."""
        size = self._size
        if self.length and drafted:
            self._average += size.alpha * (accepted - self._average)
        self._rounds += 1
        since = self._rounds - size.warmup
        if since > 0 and since % size.interval == 0:
            self._decide()

    def _decide(self) -> None:
        size, last = self._size, len(self._steps) - 1
        if self.length == 0:
            self._at = min(self._at + 1, last)
            if self.length and self._average < 0:
                self._average = self.length - 1.0
            return
        before = self._at
        while self._at and self._average <= self._floor(self._steps[self._at - 1]) + size.down:
            self._at -= 1
        if self._at == before:
            while self._at < last and self._average > self.length - 0.5 + size.up:
                self._at += 1
        if size.ceiling and self._at <= before:
            most = max(1, int(np.ceil(self._average * size.ceiling)))
            while self._at and self.length > most:
                self._at -= 1

    @staticmethod
    def _floor(shorter: int) -> float:
        return 0.5 if shorter == 0 else shorter - 0.5
