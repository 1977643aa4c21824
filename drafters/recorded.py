"""A text that is already written, as drafters see it, and how much of it they would have guessed.

A proposal depends on the committed prefix alone and the target's text is known, so acceptance needs
no pass of the target beyond the one that gives its hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.drafting import Drafter, DraftShape, Place
from draftgym.decoding.verify.base import VerificationRule, children_by_edge
from draftgym.decoding.verify.proposal import Proposal


@dataclass
class RecordedText:
    """A finished text (a `DraftContext`).

    Attributes:
        tokens: Prompt and response `[n]`.
        prompt_length: How many of them are the prompt.
        taps: The target's concatenated taps `[n, k * d]` (those of the last token are not read).
        tap_layers: The k layers they were taken from.
        rule: How its tokens were chosen, and how drafters choose theirs.
        max_new_tokens: Response tokens that it could have had; None: no more than it has. A draft
            is cut where the limit is, not where the target stopped by itself.
    """

    tokens: Tensor
    prompt_length: int
    taps: Tensor
    tap_layers: tuple[int, ...]
    rule: VerificationRule
    max_new_tokens: int | None = None

    def places(self) -> list[Place]:
        """Where its m response tokens but the first are drafted `[m - 1]`.

        The target adds one token by itself, so a draft stops one short of the limit.
        """
        length = len(self.tokens)
        limit = length
        if self.max_new_tokens is not None:
            limit = self.prompt_length + self.max_new_tokens
        return [Place(at, limit - at - 1) for at in range(self.prompt_length + 1, length)]

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """Taps at positions `start .. stop - 1`, as `DraftContext.features`.

        Raises:
            ValueError: Other layers than those that were recorded.
        """
        if tuple(layers) != self.tap_layers:
            raise ValueError(f"layers {tuple(layers)} were not recorded, {self.tap_layers} were")
        return self.taps[start:stop]


@dataclass(frozen=True)
class Rounds:
    """Rounds of one shape of draft, one per entry `[n]`.

    Attributes:
        committed: Tokens that each commits, at least 1.
        drafted: Tokens that were proposed in it.
        depth: Tokens on the longest proposed path.
    """

    committed: NDArray[np.int64]
    drafted: NDArray[np.int64]
    depth: NDArray[np.int64]

    def walked(self) -> Rounds:
        """Those that decoding plays, given one that could begin at each position."""
        at, position = [], 0
        while position < len(self.committed):
            at.append(position)
            position += int(self.committed[position])
        return Rounds(self.committed[at], self.drafted[at], self.depth[at])


def rounds_at_each(
    drafter: Drafter, text: RecordedText, shapes: Sequence[DraftShape]
) -> list[Rounds]:
    """The round that could begin at each response position of a text, by shape.

    Args:
        drafter: Who drafts.
        text: A text of m response tokens whose rule commits the path of a proposal that the text
            takes: `greedy` and `coupled`, and for trees under rejection `draftgym.drafters.forced`.
        shapes: What to draft.

    Returns:
        Per shape `m - 1` rounds; the anchor of round i is response token i.
    """
    tokens, places = text.tokens.tolist(), text.places()
    drawn = drafter.propose_at_each(text, places, shapes)
    facts = [
        [_facts(proposal, tokens[place.length :]) for proposal in proposals]
        for place, proposals in zip(places, drawn, strict=True)
    ]
    table = np.array(facts, dtype=np.int64).reshape(len(places), len(shapes), 3)
    return [Rounds(*table[:, column].T) for column in range(len(shapes))]


def _facts(proposal: Proposal, text: Sequence[int]) -> tuple[int, int, int]:
    """Committed and drafted tokens of a round, and how deep it drafted."""
    depth = proposal.depth if len(proposal) else 0
    return matched(proposal, text), len(proposal), depth


def matched(proposal: Proposal, text: Sequence[int]) -> int:
    """Tokens that a round would commit if the target's text went on like `text` (not empty)."""
    children = children_by_edge(proposal)
    node, accepted = -1, 0
    while accepted < len(text) and (node, text[accepted]) in children:
        node = children[node, text[accepted]]
        accepted += 1
    return min(accepted + 1, len(text))
