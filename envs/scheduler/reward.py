"""What a step of a cell is worth: tokens minus the price of its seconds, for all or fairly.

`sum`: every token counts 1, so the return ranks agents by total tokens over total time
(`draftgym.envs.router.reward` has the argument).

`log`: the sum over users of the logarithm of their rate, proportional fairness. Its gradient counts
a token of user k by 1 / R_k, R_k being the rate that the user has had so far (the rule that
schedulers of mobile networks use, Kelly 1997). Weights are scaled so that a cell in which all have
one rate earns what it would under `sum`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.cell import Cell, CellRound
from draftgym.envs.router.reward import RoundReward
from draftgym.policies.multispin.uplink import Floats

OBJECTIVES = ("sum", "log")
MOST_WEIGHT = 10.0
"""Nobody's token counts for more, or for less than its reciprocal."""
FIRST_PASSES = 100
"""Passes without drafts that the running price begins with."""


class SchedulerReward:
    """Rewards the steps of cells.

    Args:
        cell: Whose steps.
        price: Tokens per second, or `goodput` for the running speed; see `RoundReward`.
        objective: `sum` or `log`.

    Raises:
        DraftgymError: Another objective.
        ValueError: Another price.
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
        return np.asarray(np.clip(mean[:, None] / rates, 1 / MOST_WEIGHT, MOST_WEIGHT))

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
