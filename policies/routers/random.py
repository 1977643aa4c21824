"""A seeded die: what routing without any knowledge is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.base import Policy


class RandomPolicy(Policy):
    """Every arm with the same probability, whatever `deterministic` says: it has no best action.

    Two policies built alike make the same choices in the same order.

    Args:
        arms: What to choose from.
        seed: Seed of the die.
        name: How tables call it.

    Raises:
        DraftgymError: There is no arm.
    """

    observes = False

    def __init__(self, arms: Sequence[Arm], seed: int = 0, name: str = "random") -> None:
        if not arms:
            raise DraftgymError("policy 'random' has no arms", "load at least one drafter")
        self.name = name
        self.arms = tuple(arms)
        self._generator = np.random.default_rng(seed)

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """Independent throws of the die."""
        return self._generator.integers(len(self.arms), size=count)
