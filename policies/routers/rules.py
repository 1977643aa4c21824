"""Routers without weights: one arm for ever, a seeded die, a threshold of entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json
from draftgym.decoding.observers.observation import TEXT_SIGNALS
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


MASK = (1 << 64) - 1
"""Any whole number is a seed of sampling; numpy takes those that are not negative."""


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
        self._generator = np.random.default_rng(seed & MASK)

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """Independent throws of the die."""
        return self._generator.integers(len(self.arms), size=count)


ENTROPY = TEXT_SIGNALS.index("entropy")
THRESHOLD_FILE = Path(__file__).with_name("entropy_threshold.json")
"""The tuned threshold with its provenance; written by `draftgym tune-entropy`."""


class EntropyPolicy(Policy):
    """Autoregressive arm above a threshold of the target's entropy, diffusion arm at or below it.

    Args:
        autoregressive: Arm for uncertain positions (action 0).
        diffusion: Arm for sure positions (action 1).
        threshold: Nats, 0 or more; None takes the tuned one.
        name: How tables call it.

    Raises:
        DraftgymError: The threshold is negative or not a number.
    """

    observes = reads_confidence = True

    def __init__(
        self,
        autoregressive: Arm,
        diffusion: Arm,
        threshold: float | None = None,
        name: str = "entropy",
    ) -> None:
        self.threshold = tuned_threshold() if threshold is None else threshold
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise DraftgymError(
                f"entropy threshold {threshold} is not possible",
                "give nats, 0 or more, as in entropy:1.5",
            )
        self.name = name
        self.arms = (autoregressive, diffusion)

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """0 where the entropy is above the threshold, 1 elsewhere."""
        entropy = np.asarray(observation["signals"])[:, ENTROPY]
        return np.where(entropy > self.threshold, 0, 1).astype(np.int64)


def tuned_threshold() -> float:
    """The shipped threshold in nats, tuned on training prompts."""
    remedy = "write it with draftgym tune-entropy, or install draftgym again"
    return float(read_json(THRESHOLD_FILE, remedy)["threshold"])
