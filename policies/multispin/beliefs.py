"""What a scheduler believes about each user's acceptance, and how it learns it from rounds.

The closed forms take one acceptance per user: the chance that a drafted token is accepted, given
that those before it were. A round of L drafted tokens of which n are accepted is evidence of n
acceptances and, if n < L, of one rejection; what came after the rejection was never judged. So

    likelihood = a^n (1 - a)^[n < L]

and `n / L` would be a biased estimate. The paper (arXiv 2606.04581, equation 10 and Table I) uses
the mean of the user's task, measured beforehand; estimates from rounds are ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.policies.multispin.uplink import Floats


class AcceptanceEstimator(ABC):
    """Estimates one acceptance per user. All arrays have one shape, users last.

    `begin` comes before the first estimate, and again for users who begin another prompt.
    """

    @abstractmethod
    def begin(
        self,
        which: NDArray[np.bool_],
        category: NDArray[np.int64],
        newcomers: NDArray[np.bool_] | None = None,
    ) -> None:
        """Some users begin a new prompt.

        Args:
            which: Who.
            category: Index of the task that everybody's prompt belongs to.
            newcomers: Who of them was not there before and has no past; None for nobody.
        """

    @abstractmethod
    def update(self, drafted: NDArray[np.int64], accepted: NDArray[np.int64]) -> None:
        """A round has ended.

        Args:
            drafted: Tokens that each user drafted; 0 teaches nothing.
            accepted: How many of them the target accepted.
        """

    @abstractmethod
    def estimate(self, given: Floats) -> Floats:
        """Acceptance in [0, 1], given what the problem itself says of it."""


class GivenAcceptance(AcceptanceEstimator):
    """Believes the problem: the truth, if whoever states the problem knows it."""

    def begin(
        self,
        which: NDArray[np.bool_],
        category: NDArray[np.int64],
        newcomers: NDArray[np.bool_] | None = None,
    ) -> None:
        """Nothing to prepare."""

    def update(self, drafted: NDArray[np.int64], accepted: NDArray[np.int64]) -> None:
        """Nothing to learn."""

    def estimate(self, given: Floats) -> Floats:
        """What the problem says."""
        return given


class TaskMean(AcceptanceEstimator):
    """The mean of the user's task, measured beforehand: the paper's way.

    Args:
        means: Mean acceptance of each category, in [0, 1].

    Raises:
        ValueError: There is no category, or a mean is not a probability.
    """

    def __init__(self, means: Sequence[float]) -> None:
        self.means = np.asarray(means, dtype=np.float64)
        if not self.means.size or not np.all((self.means >= 0) & (self.means <= 1)):
            raise ValueError(f"mean acceptances {means} are not probabilities")
        self._mean: Floats | None = None

    def begin(
        self,
        which: NDArray[np.bool_],
        category: NDArray[np.int64],
        newcomers: NDArray[np.bool_] | None = None,
    ) -> None:
        """Looks the means up."""
        self._mean = self.means[category]

    def update(self, drafted: NDArray[np.int64], accepted: NDArray[np.int64]) -> None:
        """Nothing to learn."""

    def estimate(self, given: Floats) -> Floats:
        """Means of the users' tasks."""
        if self._mean is None:
            raise ValueError("begin() comes before estimate()")
        return self._mean


class CountedAcceptance(AcceptanceEstimator):
    """Accepted over judged tokens, starting from the mean of the user's task.

    The start counts as `strength` judged tokens. With `memory` 1 and a new start for every prompt
    the estimate is the mean of the Beta posterior; its prior is Beta(m s, (1 - m) s), m being the
    mean and s the strength.
    With `memory` below 1, rounds fade geometrically, the start included: a moving average, in which
    a round weighs as much as the tokens that were judged in it. (The average of each round's ratio
    would be biased: rounds end by a rejection.)

    Args:
        means: Mean acceptance of each category, in [0, 1].
        strength: Judged tokens that the start is worth, above 0.
        memory: Weight that a round keeps when the next one comes, above 0 and at most 1.
        keep: Whether a user's new prompt goes on from the old estimate.

    Raises:
        ValueError: A number is not possible.
    """

    def __init__(
        self, means: Sequence[float], strength: float, memory: float = 1.0, keep: bool = False
    ) -> None:
        if not (np.isfinite(strength) and strength > 0 and 0 < memory <= 1):
            raise ValueError(f"strength {strength} or memory {memory} is not possible")
        self._prior = TaskMean(means)
        self.strength, self.memory, self.keep = strength, memory, keep
        self.accepted: Floats | None = None
        self.judged: Floats | None = None

    def begin(
        self,
        which: NDArray[np.bool_],
        category: NDArray[np.int64],
        newcomers: NDArray[np.bool_] | None = None,
    ) -> None:
        """Users start from the mean of their task (those without a past, if pasts are kept)."""
        mean = self._prior.means[category]
        if self.judged is None or self.accepted is None:
            self.judged = np.full(which.shape, self.strength)
            self.accepted = self.strength * mean
            return
        fresh = newcomers if self.keep else which
        if fresh is not None:
            self.judged = np.where(fresh, self.strength, self.judged)
            self.accepted = np.where(fresh, self.strength * mean, self.accepted)

    def update(self, drafted: NDArray[np.int64], accepted: NDArray[np.int64]) -> None:
        """Counts a round; users who drafted nothing keep what they have."""
        if self.judged is None or self.accepted is None:
            raise ValueError("begin() comes before update()")
        kept = np.where(drafted > 0, self.memory, 1.0)
        self.judged = kept * self.judged + accepted + (accepted < drafted)
        self.accepted = kept * self.accepted + accepted

    def estimate(self, given: Floats) -> Floats:
        """Accepted over judged tokens."""
        if self.judged is None or self.accepted is None:
            raise ValueError("begin() comes before estimate()")
        return self.accepted / self.judged


class MistakenAcceptance(AcceptanceEstimator):
    """Another estimate, wrong on purpose: what does an error cost?

    The odds of acceptance are multiplied by `factor`, so that 0.8 becomes 0.92 by a factor of 3 and
    0.57 by a third; 0 and 1 stay.

    Args:
        truth: What is distorted.
        factor: Above 1 believes too much, below 1 too little.

    Raises:
        ValueError: The factor is not above 0.
    """

    def __init__(self, truth: AcceptanceEstimator, factor: float) -> None:
        if not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"odds cannot be multiplied by {factor}")
        self.truth, self.factor = truth, factor

    def begin(
        self,
        which: NDArray[np.bool_],
        category: NDArray[np.int64],
        newcomers: NDArray[np.bool_] | None = None,
    ) -> None:
        """Passed on."""
        self.truth.begin(which, category, newcomers)

    def update(self, drafted: NDArray[np.int64], accepted: NDArray[np.int64]) -> None:
        """Passed on."""
        self.truth.update(drafted, accepted)

    def estimate(self, given: Floats) -> Floats:
        """The distorted estimate."""
        right = self.truth.estimate(given)
        return right * self.factor / (right * self.factor + (1 - right))  # at most 1 when rounded


def beta_posterior(means: Sequence[float], strength: float = 4.0) -> CountedAcceptance:
    """The Beta posterior of each prompt, from a prior around the mean of its task."""
    return CountedAcceptance(means, strength)


def moving_average(means: Sequence[float], memory: float = 0.9) -> CountedAcceptance:
    """A moving average over a user's rounds, across its prompts."""
    return CountedAcceptance(means, strength=4.0, memory=memory, keep=True)


def geometric_acceptance(drafted: ArrayLike, accepted: ArrayLike) -> float:
    """The likeliest acceptance of recorded rounds: what to take for the mean of a task.

    Args:
        drafted: Drafted tokens of each round, any shape.
        accepted: Accepted ones.

    Raises:
        ValueError: No token was judged.
    """
    kept, length = np.asarray(accepted), np.asarray(drafted)
    judged = kept.sum() + (kept < length).sum()
    if not judged:
        raise ValueError("no drafted token was judged")
    return float(kept.sum() / judged)
