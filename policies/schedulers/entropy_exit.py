"""Ending a draft where the drafter is no longer sure: the inner loop of GELATO (arXiv 2605.10124).

Acceptance falls with the drafter's entropy; the paper fits `a = exp(-0.35 H)`, H in nats. Tokens
of average acceptance `a_0` therefore have an entropy of `H_0 = -ln(a_0) / 0.35` (equation 11), and
what a draft exceeds that by collects in a leaky bucket:

    backlog_i = max(0, backlog_{i-1} + H_i - H_0)      (equation 12)

Drafting ends at the first token whose backlog is above `1.2 H_0`, and what came before it is sent
(equation 13; 0.35, 1.2 and the formulas are the paper's). That token has been drafted all the same:
a device cannot know its entropy without computing it. How the paper's simulation counts its time is
not said; here it is drafted and not sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from draftgym.policies.multispin.problem import Lengths
from draftgym.policies.multispin.uplink import Floats


@dataclass(frozen=True)
class EntropyExit:
    """The rule and its two constants.

    Attributes:
        decay: How acceptance falls with entropy, per nat; above 0.
        patience: Backlog that ends a draft, in multiples of the usual entropy; 0 or more.

    Raises:
        ValueError: A constant is not possible.
    """

    decay: float = 0.35
    patience: float = 1.2

    def __post_init__(self) -> None:
        if not (np.isfinite(self.decay) and self.decay > 0 and self.patience >= 0):
            raise ValueError(f"decay {self.decay} or patience {self.patience} is not possible")

    def usual_entropy(self, acceptance: ArrayLike) -> Floats:
        """`H_0` in nats: the entropy at which tokens have this acceptance; infinite at 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(-np.log(np.asarray(acceptance, dtype=np.float64)) / self.decay)

    def lengths(
        self, budget: Lengths, entropies: Floats, acceptance: Floats
    ) -> tuple[Lengths, Lengths]:
        """How far users draft, and how much of it they send.

        Args:
            budget: Tokens that each user may draft `[..., k]`.
            entropies: Entropy in nats of the drafter at each drafted token `[..., k, l]`, l at
                least the largest budget; what lies behind a user's budget is ignored.
            acceptance: Average acceptance of each user `[..., k]`.

        Returns:
            Drafted and sent tokens, int64 `[..., k]`; they differ by at most 1.

        Raises:
            ValueError: A budget goes beyond the entropies.
        """
        most = entropies.shape[-1]
        if budget.size and budget.max() > most:
            raise ValueError(f"a budget of {budget.max()} tokens, {most} entropies")
        usual = self.usual_entropy(acceptance)
        backlog = np.zeros(budget.shape)
        going = np.ones(budget.shape, dtype=bool)
        drafted = np.zeros(budget.shape, dtype=np.int64)
        sent = np.zeros(budget.shape, dtype=np.int64)
        for token in range(most):
            going &= token < budget
            drafted += going
            backlog = np.maximum(0.0, backlog + entropies[..., token] - usual)
            going &= backlog <= self.patience * usual
            sent += going
        return drafted, sent
