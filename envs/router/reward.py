"""What a round is worth: tokens, minus its time at a price.

A text has the same tokens whatever is chosen, so with any positive price the undiscounted return of
an episode ranks policies by the time they take. The price matters to learning: at the price of the
speed that is being reached, a round earns what it is better than the average round, and its reward
says what the ratio of total tokens to total time gains by it (the fractional program's parameter,
Dinkelbach 1967). A mean of per-round ratios would overrate short cheap rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reward = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""What rounds are worth `[n]`, from committed tokens, target steps and arms (indices), `[n]` each.

Environments and trainers take any; `RoundReward` is theirs unless told otherwise."""
GOODPUT = "goodput"
MEMORY = 20_000
"""Rounds that the running speed looks back on."""


class RoundReward:
    """Rewards rounds: `committed - price * time`, time being target steps or seconds.

    Args:
        price: Tokens per unit of time: a number, or `goodput` for the running speed (then the same
            round earns less the better the agent has become).
        first_speed: The running speed until something is known: plain decoding's.
        first_time: How much time that counts for.

    Raises:
        ValueError: Another price.
    """

    def __init__(
        self, price: float | str, first_speed: float = 1.0, first_time: float = 100.0
    ) -> None:
        if isinstance(price, str) and price != GOODPUT:
            raise ValueError(f"the price must be a number or {GOODPUT!r}, got {price!r}")
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
