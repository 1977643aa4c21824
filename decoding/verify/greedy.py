"""Greedy verification: temperature 0, every token is the target's argmax."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from draftgym.decoding.verify.base import (
    Drafted,
    Verdict,
    VerificationRule,
    best_of,
    check_rows,
    choices_of,
    chosen_tokens,
    walk,
)
from draftgym.decoding.verify.proposal import Proposal


class GreedyRule(VerificationRule):
    """Temperature 0: every token is the argmax."""

    name = "greedy"
    temperature = 0.0
    picks_best = True

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Argmax of each row; see `VerificationRule.draft`."""
        return *chosen_tokens(logits, logits.argmax(-1), vocab), None

    def look(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool
    ) -> tuple[Tensor, ...]:
        """The argmax of every row; see `VerificationRule.look`."""
        check_rows(proposal, logits)
        return best_of(logits, with_margins)

    def decide(
        self, proposal: Proposal, position: int, with_margins: bool, *seen: Tensor
    ) -> Verdict:
        """Walks the tree along the target's argmaxes; see `VerificationRule.decide`."""
        return walk(proposal, choices_of(*seen), with_margins)
