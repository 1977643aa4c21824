"""Schedulers: a plan for every round, from a rule and a belief about acceptance.

    belief (estimator)  ->  plan (rule)  ->  round  ->  what was accepted  ->  belief

Written `rule` or `rule@belief`: `heterogeneous@beta`, `fixed`, `homogeneous@mean`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.policies.multispin.baselines import (
    alone_plan,
    common_acceptance_plan,
    fixed_plan,
    homogeneous_plan,
    selfish_plan,
    uniform_bandwidth_plan,
)
from draftgym.policies.multispin.beliefs import (
    AcceptanceEstimator,
    GivenAcceptance,
    MistakenAcceptance,
    TaskMean,
    beta_posterior,
    moving_average,
)
from draftgym.policies.multispin.channels import alike_plan
from draftgym.policies.multispin.heterogeneous import heterogeneous_plan
from draftgym.policies.multispin.problem import Lengths, Plan, RoundProblem
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


Rule = Callable[[RoundProblem], Plan]

RULES: dict[str, Rule] = {
    "fixed": fixed_plan,
    "uniform-bandwidth": uniform_bandwidth_plan,
    "p2p": alone_plan,
    "theorem-1": common_acceptance_plan,
    "homogeneous": homogeneous_plan,
    "heterogeneous": heterogeneous_plan,
    "alike": alike_plan,
    "gelato": selfish_plan,
}
"""Plans by name. `gelato` also ends drafts early."""

BELIEFS: dict[str, Callable[[Sequence[float]], AcceptanceEstimator]] = {
    "given": lambda means: GivenAcceptance(),
    "mean": TaskMean,
    "beta": beta_posterior,
    "average": moving_average,
    "too-high": lambda means: MistakenAcceptance(GivenAcceptance(), 3.0),
    "too-low": lambda means: MistakenAcceptance(GivenAcceptance(), 1 / 3),
}
"""Estimators by name, made from the mean acceptance of each task."""

FOUND = "+found"
USUAL = "beta"
"""What a scheduler believes that is not told: the best that needs no knowledge of the prompt."""


class Scheduler:
    """Plans rounds by a rule, with its own belief about acceptance.

    Args:
        name: How tables call it.
        rule: What makes a plan of a problem.
        belief: Where acceptance comes from.
        early_exit: What ends drafts early; None drafts what was planned.
        looks: Whether it wants to know which lookups find nothing.
    """

    def __init__(
        self,
        name: str,
        rule: Rule,
        belief: AcceptanceEstimator,
        early_exit: EntropyExit | None = None,
        looks: bool = False,
    ) -> None:
        self.name = name
        self.rule = rule
        self.belief = belief
        self.early_exit = early_exit
        self.looks = looks

    def begin(
        self,
        which: NDArray[np.bool_],
        category: NDArray[np.int64],
        newcomers: NDArray[np.bool_] | None = None,
    ) -> None:
        """Some users begin a new prompt; see `AcceptanceEstimator.begin`."""
        self.belief.begin(which, category, newcomers)

    def plan(self, problem: RoundProblem, nothing: NDArray[np.bool_] | None = None) -> Plan:
        """The plan of a round, or of a batch of them.

        Args:
            problem: The round. Its acceptance is read only by a belief that takes it as given.
            nothing: Whose drafter is known to find nothing `[..., k]`; None where nobody looked.
        """
        acceptance = self.belief.estimate(problem.acceptance)
        if nothing is not None:
            acceptance = np.where(nothing, 0.0, acceptance)
        return self.rule(problem.with_acceptance(acceptance))

    def update(self, drafted: NDArray[np.int64], accepted: NDArray[np.int64]) -> None:
        """Learns from a round that has ended.

        Args:
            drafted: Tokens that the target verified of each user `[..., k]`.
            accepted: Tokens of these that it accepted.
        """
        self.belief.update(drafted, accepted)


def make_scheduler(spec: str, means: Sequence[float]) -> Scheduler:
    """Builds a scheduler.

    Args:
        spec: `rule` or `rule@belief`, of `RULES` and `BELIEFS`; `+found` behind it expects nothing
            of prompt lookup that finds nothing: whoever has the text can look for itself.
        means: Mean acceptance of each task, by the index that `begin` is told.

    Raises:
        DraftgymError: There is no such rule or belief.
    """
    plain = spec.strip().removesuffix(FOUND)
    rule, at, belief = plain.partition("@")
    _check(spec, "rule", rule, RULES)
    _check(spec, "belief", belief := belief if at else USUAL, BELIEFS)
    early_exit = EntropyExit() if rule == "gelato" else None
    looks = plain != spec.strip()
    return Scheduler(spec.strip(), RULES[rule], BELIEFS[belief](means), early_exit, looks)


def _check(spec: str, what: str, name: str, known: Collection[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise DraftgymError(
        f"scheduler {spec!r} has an unknown {what}: {name!r}",
        f"{hint}choose from {', '.join(known)}, as in heterogeneous@beta",
    )
