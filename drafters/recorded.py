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

from decoding.drafting import Drafter, DraftShape
from decoding.proposal import Proposal
from decoding.verification import VerificationRule, children_by_edge
from drafters.parallel import Place, propose_at_each


@dataclass
class RecordedText:
    """A finished text (a `DraftContext`).

    Attributes:
        tokens: Prompt and response `[n]`.
        prompt_length: How many of them are the prompt.
        taps: The target's concatenated taps `[n, k * d]` (those of the last token are not read).
        tap_layers: The k layers they were taken from.
        rule: How its tokens were chosen, and how drafters choose theirs.
    """

    tokens: Tensor
    prompt_length: int
    taps: Tensor
    tap_layers: tuple[int, ...]
    rule: VerificationRule

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """Taps at positions `start .. stop - 1`, as `DraftContext.features`.

        Raises:
            ValueError: Other layers than those that were recorded.
        """
        if tuple(layers) != self.tap_layers:
            raise ValueError(f"layers {tuple(layers)} were not recorded, {self.tap_layers} were")
        return self.taps[start:stop]


def committed_at_each(
    drafter: Drafter, text: RecordedText, shapes: Sequence[DraftShape]
) -> NDArray[np.int64]:
    """Tokens that a round would commit at each response position of a text.

    Args:
        drafter: Who drafts.
        text: A text of m response tokens, chosen by a rule under which it does not depend on drafts
            (`greedy` or `coupled`).
        shapes: What to draft.

    Returns:
        `[len(shapes), m - 1]`; column i is a round whose anchor is response token i.
    """
    tokens, first = text.tokens.tolist(), text.prompt_length + 1
    places = [Place(length, len(tokens) - length - 1) for length in range(first, len(tokens))]
    drawn = propose_at_each(drafter, text, places, shapes)
    rows = [
        [matched(proposal, tokens[place.length :]) for proposal in proposals]
        for place, proposals in zip(places, drawn, strict=True)
    ]
    return np.array(rows, dtype=np.int64).reshape(len(places), len(shapes)).T


def matched(proposal: Proposal, text: Sequence[int]) -> int:
    """Tokens that a round would commit if the target's text went on like `text` (not empty)."""
    children = children_by_edge(proposal)
    node, accepted = -1, 0
    while accepted < len(text) and (node, text[accepted]) in children:
        node = children[node, text[accepted]]
        accepted += 1
    return min(accepted + 1, len(text))


def rounds_of(committed: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the rounds of decoding commit, given what a round at each position would `[m - 1]`."""
    rounds, position = [], 0
    while position < len(committed):
        rounds.append(int(committed[position]))
        position += rounds[-1]
    return np.array(rounds, dtype=np.int64)
