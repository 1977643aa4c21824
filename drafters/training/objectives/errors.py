"""Where verification stops a drafter on the target's texts, and a bounded store of such places.

A round of decoding commits what the target would have written anyway, so on a text that is already
there the rounds follow from the drafts alone (`draftgym.drafters.positions.recorded`): no pass of
the target is needed to know where each draft went wrong. For greedy texts these are the rounds of
decoding at T = 0; for sampled ones those of decoding with drafts that are not drawn, given that
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.drafters.positions.recorded import RecordedText, rounds_at_each

TEXT, START, ERROR, FOUND = range(4)
"""Columns of `ErrorBuffer.errors`."""


def errors_of(drafter: Drafter, text: RecordedText, depth: int) -> Tensor:
    """The rounds of decoding a text whose draft went wrong, int64 `[n, 2]` on the host.

    Args:
        drafter: Who drafts chains.
        text: The text; its rule chooses the drafted tokens.
        depth: Length of a chain.

    Returns:
        Per such round, in order: the position of its anchor, and that of the first token that the
        target wrote otherwise.
    """
    (rounds,) = rounds_at_each(drafter, text, [DraftShape(depth)])
    played = np.array(rounds.played(), dtype=np.int64)
    failed = played[rounds.committed[played] <= rounds.depth[played]]
    anchors = text.prompt_length + failed
    return torch.from_numpy(np.stack([anchors, anchors + rounds.committed[failed]], 1))


def _none() -> Tensor:
    return torch.zeros(0, 4, dtype=torch.long)


@dataclass(frozen=True)
class ErrorBuffer:
    """Errors in texts of a list, the newest ones.

    Attributes:
        errors: One per row, int64 `[n, 4]` on the host, oldest first: index of the text, position
            of the anchor, position of the first wrong token, update at which it was found.
        filled: Update at which texts were last decoded; 0 before the first.
    """

    errors: Tensor = field(default_factory=_none)
    filled: int = 0

    @property
    def found(self) -> list[int]:
        """Texts that have errors, ascending."""
        texts: list[int] = self.errors[:, TEXT].unique().tolist()
        return texts

    def with_texts(
        self, decoded: Sequence[int], errors: Sequence[Tensor], update: int, most: int
    ) -> ErrorBuffer:
        """With the errors of texts that were just decoded; what was known of these is forgotten.

        Args:
            decoded: Indices of the texts.
            errors: Of each, as `errors_of` tells them.
            update: When this is.
            most: How many errors are kept; the oldest go first.
        """
        rows = [self.errors[~torch.isin(self.errors[:, TEXT], torch.tensor(decoded))]]
        for text, places in zip(decoded, errors, strict=True):
            row = places.new_tensor([[text, 0, 0, update]]).repeat(len(places), 1)
            row[:, START : ERROR + 1] = places
            rows.append(row)
        return ErrorBuffer(torch.cat(rows)[-most:], update)

    def draw(self, texts: int, most: int | None, seed: int) -> list[Tensor]:
        """Errors of some texts, one tensor of rows per text.

        Args:
            texts: How many texts, at random; fewer if fewer have errors.
            most: Random errors per text, without repeats; None takes all.
            seed: Of the draw.
        """
        generator = torch.Generator().manual_seed(seed)
        found, drawn = self.found, []
        for index in torch.randperm(len(found), generator=generator)[:texts].tolist():
            rows = self.errors[self.errors[:, TEXT] == found[index]]
            drawn.append(rows[torch.randperm(len(rows), generator=generator)[:most]])
        return drawn
