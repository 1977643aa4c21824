"""Always the same arm: every drafter alone, and plain decoding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.policies.base import Policy


class FixedPolicy(Policy):
    """One arm for every round; `FixedPolicy(Arm("plain", 0))` is plain decoding.

    Args:
        arm: The arm.
        name: How tables call it; by default the arm as it is written on the command line.
    """

    observes = False

    def __init__(self, arm: Arm, name: str | None = None) -> None:
        self.name = name or str(arm)
        self.arms = (arm,)

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """The only action, `count` times."""
        return np.zeros(count, dtype=np.int64)
