"""Greedy verification: temperature 0, every token is the target's argmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from draftgym.decoding.verify.base import (
    Drafted,
    Verdict,
    VerificationRule,
    check_finite,
    check_rows,
    chosen_tokens,
    margin_of,
    walk,
)
from draftgym.decoding.verify.proposal import Proposal


class GreedyRule(VerificationRule):
    """Temperature 0: every token is the argmax."""

    name = "greedy"
    temperature = 0.0

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Argmax of each row; see `VerificationRule.draft`."""
        return *chosen_tokens(logits, logits.argmax(-1), vocab), None

    def verify(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool = False
    ) -> Verdict:
        """Walks the tree along the target's argmaxes; see `VerificationRule.verify`."""
        check_rows(proposal, logits)
        # One reduction over all rows: a single wait for the accelerator instead of one per token.
        tops, choices = (values.tolist() for values in logits.max(dim=-1))

        def choose(row: int, depth: int) -> tuple[int, float]:
            check_finite(tops[row])
            return choices[row], margin_of(logits[row]) if with_margins else math.nan

        return walk(proposal, choose, with_margins)
