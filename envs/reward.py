"""What a round is worth: tokens, minus its time at a price.

A text has the same tokens whatever is chosen, so with any positive price the undiscounted return of
an episode ranks policies by the time they take. The price matters to learning: at the price of the
speed that is being reached, a round earns what it is better than the average round, and its reward
says what the ratio of total tokens to total time gains by it (the fractional program's parameter,
Dinkelbach 1967). A mean of per-round ratios would overrate short cheap rounds.

A cell's tokens are those of all its users (`sum`), or count more for users who have had less
(`log`): the sum over users of the logarithm of their rate is proportional fairness, and its
gradient counts a token of user k by 1 / R_k, R_k being the rate that the user has had so far (the
rule that schedulers of mobile networks use, Kelly 1997). Weights are scaled so that a cell in which
all have one rate earns what it would under `sum`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.cell import Cell, CellRound
from draftgym.policies.multispin.uplink import Floats

Reward = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""What a router's rounds are worth `[n]`, from committed tokens, target steps and arms (indices),
`[n]` each. Environments and trainers take any; `RoundReward` is theirs unless told otherwise."""
GOODPUT = "goodput"
MEMORY = 20_000
"""Rounds that the running speed looks back on."""
OBJECTIVES = ("sum", "log")
MAX_WEIGHT = 10.0
"""Nobody's token counts for more, or for less than its reciprocal."""
FIRST_PASSES = 100
"""Passes without drafts that a cell's running price begins with."""


class RoundReward:
    """Rewards rounds: `committed - price * time`, time being target steps or seconds.

    Args:
        price: Tokens per unit of time: a number, or `goodput` for the running speed (then the same
            round earns less the better the agent has become).
        first_speed: The running speed until something is known: plain decoding's.
        first_time: How much time that counts for.

    Raises:
        DraftgymError: Another price.
    """

    def __init__(
        self, price: float | str, first_speed: float = 1.0, first_time: float = 100.0
    ) -> None:
        if isinstance(price, str) and price != GOODPUT:
            raise DraftgymError(f"a price of {price!r}", f"give a number or {GOODPUT!r}")
        self._fixed = None if isinstance(price, str) else float(price)
        self._first = first_speed * first_time, first_time
        self.restart()

    def restart(self) -> None:
        """Forgets the running speed."""
        self._tokens, self._steps = self._first

    @property
    def price(self) -> float:
        """Tokens per unit of time."""
        return self._tokens / self._steps if self._fixed is None else self._fixed

    def __call__(self, committed: Any, steps: Any, arms: Any = None) -> NDArray[np.float64]:
        """Rewards of some rounds, at the price before them.

        Args:
            committed: Tokens of each round `[n]`.
            steps: Its time `[n]`.
            arms: Not read: time alone has a price.
        """
        committed, steps = np.asarray(committed, float), np.asarray(steps, float)
        rewards = committed - self.price * steps
        keep = (1 - 1 / MEMORY) ** committed.size
        self._tokens = keep * self._tokens + float(committed.sum())
        self._steps = keep * self._steps + float(steps.sum())
        return np.asarray(rewards)


def restart(reward: Reward) -> None:
    """Lets a reward forget earlier rounds, if it remembers any (`RoundReward.restart`)."""
    forget = getattr(reward, "restart", None)
    if forget is not None:
        forget()


class SchedulerReward:
    """Rewards the steps of cells.

    Args:
        cell: Whose steps.
        price: Tokens per second, or `goodput` for the running speed; see `RoundReward`.
        objective: `sum` or `log`.

    Raises:
        DraftgymError: Another objective or price.
    """

    def __init__(self, cell: Cell, price: float | str, objective: str) -> None:
        if objective not in OBJECTIVES:
            raise DraftgymError(
                f"unknown objective {objective!r}", f"use {' or '.join(OBJECTIVES)}"
            )
        self.objective = objective
        speed = cell.settings.users / cell.pass_seconds
        self._rounds = RoundReward(price, speed, FIRST_PASSES * cell.pass_seconds)

    @property
    def price(self) -> float:
        """Tokens per second."""
        return self._rounds.price

    def restart(self) -> None:
        """Forgets the running speed."""
        self._rounds.restart()

    def weights(self, cell: Cell) -> Floats:
        """What a token of each user counts in the next step `[n, K]`."""
        if self.objective == "sum":
            return np.ones(cell.shape)
        active, rates = cell.users.active, cell.users.rates
        mean = (rates * active).sum(-1) / np.maximum(active.sum(-1), 1)
        return np.asarray(np.clip(mean[:, None] / rates, 1 / MAX_WEIGHT, MAX_WEIGHT))

    def worth(
        self, weights: Floats, committed: NDArray[np.int64], seconds: Floats
    ) -> NDArray[np.float64]:
        """What a step would be rewarded at the price as it is `[n]`; it is not counted.

        Args:
            weights: From before it.
            committed: Tokens of each user `[n, K]`.
            seconds: Its time `[n]`.
        """
        return np.asarray((weights * committed).sum(-1) - self.price * seconds)

    def __call__(self, weights: Floats, played: CellRound) -> NDArray[np.float64]:
        """Rewards of a step `[n]`.

        Args:
            weights: From before it.
            played: The step.
        """
        tokens = np.asarray((weights * played.committed).sum(-1))
        return self._rounds(tokens, played.time.total)
