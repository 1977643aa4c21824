"""Bandits: they know nothing of the text, and learn which arm pays while they serve.

The observation tells what the last round did: which arm (`last_arm_*`) and how many tokens
(`last_committed`). That is all a bandit reads. It keeps its statistics in itself and goes on
learning from prompt to prompt, as a server would; the last round of a text is never reported, so it
is never learned from. Given the same observations in the same order, it makes the same choices.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, Asking
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import PROGRESS_SIGNALS, TEXT_SIGNALS
from draftgym.policies.base import Policy

CONTEXT = len(TEXT_SIGNALS) + PROGRESS_SIGNALS.index("context")
LAST_COMMITTED = len(TEXT_SIGNALS) + PROGRESS_SIGNALS.index("last_committed")


def read_context(signals: NDArray[np.float32]) -> NDArray[np.int64]:
    """Positions in the target's cache, from `signals [n, s]`: `[n]`."""
    return np.rint(np.expm1(4 * signals[:, CONTEXT].astype(np.float64))).astype(np.int64)


def read_rounds(
    signals: NDArray[np.float32], arms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rounds that `signals [n, s]` report: rows that report one, arms, tokens committed `[r]`.

    An episode's first observation reports no round.

    Args:
        signals: The observations.
        arms: How many arms the policy has.
    """
    last_arm = signals[:, -arms:]
    rows = np.flatnonzero(last_arm.any(1))
    tokens = np.rint(4 * signals[rows, LAST_COMMITTED]).astype(np.int64)
    return rows, last_arm[rows].argmax(1), tokens


def full_round_seconds(model: CostModel, arm: Arm, context: int, backlog: int) -> float:
    """What a round costs whose arm drafts all it may and asks all its parts.

    Args:
        model: The costs.
        arm: The arm.
        context: Positions in the target's cache.
        backlog: What each drafter has to catch up.
    """
    asked = [Asking(part, part.shape.budget, part.length, backlog) for part in arm.parts]
    return model.round_seconds(asked, arm.shape.budget, context)


class Bandit(Policy):
    """Tries every arm once, then takes the one whose upper confidence bound is worth most.

    Subclasses say what a number of tokens is worth.

    Args:
        arms: What to choose from.
        exploration: Factor of the confidence bonus; 1 is UCB1's, 0 never explores again.
        name: How tables call it.

    Raises:
        DraftgymError: There is no arm, or the factor is negative or not a number.

    Attributes:
        rounds: Rounds learned from, per arm `[k]`.
        tokens: Tokens that they committed `[k]`.
    """

    observes = True

    def __init__(self, arms: Sequence[Arm], exploration: float, name: str) -> None:
        if not arms:
            raise DraftgymError(f"policy {name!r} has no arms", "load at least one drafter")
        if not (math.isfinite(exploration) and exploration >= 0):
            raise DraftgymError(
                f"policy {name!r} explores by {exploration}",
                "give a factor of 0 or more, as in ucb:0.5",
            )
        self.name = name
        self.arms = tuple(arms)
        self.exploration = exploration
        self.rounds = np.zeros(len(arms))
        self.tokens = np.zeros(len(arms))
        self._longest = 1 + max(arm.length for arm in arms)

    @abstractmethod
    def worth(self, tokens: NDArray[np.float64], context: int) -> NDArray[np.float64]:
        """What it is worth if a round of each arm commits these tokens `[k]`.

        Args:
            tokens: Upper confidence bounds of the tokens per round `[k]`.
            context: Positions in the target's cache.
        """

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """Learns from all the rounds that are reported, then chooses for each episode in turn.

        Rounds of a batch end after all of them were chosen. Each counts as tried while the others
        are chosen, so that a batch does not put all its episodes on one uncertain arm.
        """
        signals = np.asarray(observation["signals"])
        self._learn(signals)
        context = read_context(signals)
        pending = np.zeros(len(self.arms))
        actions = np.empty(count, dtype=np.int64)
        for episode in range(count):
            actions[episode] = self._choose_one(self.rounds + pending, int(context[episode]))
            pending[actions[episode]] += 1
        return actions

    @property
    def mean_tokens(self) -> NDArray[np.float64]:
        """Tokens per round of each arm `[k]`; 0 before its first."""
        return self.tokens / np.maximum(self.rounds, 1)

    def _learn(self, signals: NDArray[np.float32]) -> None:
        _, arms, tokens = read_rounds(signals, len(self.arms))
        np.add.at(self.rounds, arms, 1)
        np.add.at(self.tokens, arms, tokens)

    def _choose_one(self, tried: NDArray[np.float64], context: int) -> int:
        if not tried.all():
            return int(np.argmin(tried > 0))
        bonus = self.exploration * np.sqrt(2 * np.log(tried.sum()) / tried)
        # UCB1 wants rewards within 0 to 1; times the most a round can commit, both sides are tokens
        return int(np.argmax(self.worth(self.mean_tokens + self._longest * bonus, context)))


class TokenBandit(Bandit):
    """UCB1 on tokens per round: the acceptance length, blind to what a round costs.

    In the manner of BanditSpec (arXiv 2505.15141), which chooses among configurations by upper
    confidence bounds of the tokens that a round commits.

    Args:
        arms: What to choose from.
        exploration: Factor of the confidence bonus.
        name: How tables call it.
    """

    def __init__(self, arms: Sequence[Arm], exploration: float = 1.0, name: str = "ucb") -> None:
        super().__init__(arms, exploration, name)

    def worth(self, tokens: NDArray[np.float64], context: int) -> NDArray[np.float64]:
        """The tokens themselves."""
        return tokens


class TimedBandit(Bandit):
    """UCB on tokens per second: the same bound, divided by what a round of the arm costs.

    Seconds come from the cost model for the arm's full draft, caught up as if it were always
    chosen. Prompt lookup often finds nothing and is then cheaper than it is made out to be here.

    Given arms that differ in `~` alone (`ucb-time@eagle3:3x6~0.03,eagle3:3x6~0.1`) it is a bandit
    over stopping rules in the manner of TapOut (arXiv 2511.02017), which runs UCB1 over several
    rules for when to stop drafting. Its reward blends accepted length and rate; this one is tokens
    per second. No observation says how many rows were saved, and full drafts of such arms cost the
    same: tell it seconds that were measured, or it takes the arm of most tokens.

    Args:
        arms: What to choose from.
        cost_model: What rounds cost.
        exploration: Factor of the confidence bonus.
        name: How tables call it.
        seconds: What a round of each arm costs on average `[k]`, as on training traces; None asks
            the cost model for full drafts.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        cost_model: CostModel,
        exploration: float = 1.0,
        name: str = "ucb-time",
        seconds: Sequence[float] | None = None,
    ) -> None:
        super().__init__(arms, exploration, name)
        self._cost_model, self._seconds = cost_model, seconds

    def worth(self, tokens: NDArray[np.float64], context: int) -> NDArray[np.float64]:
        """Tokens per second."""
        if self._seconds is not None:
            return tokens / np.array(self._seconds, dtype=np.float64)
        backlogs = np.rint(self.mean_tokens).astype(int)
        return tokens / [
            full_round_seconds(self._cost_model, arm, context, backlog)
            for arm, backlog in zip(self.arms, backlogs.tolist(), strict=True)
        ]
