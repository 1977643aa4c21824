"""WhiFlash-Entropy: routing by one threshold (arXiv 2606.07710, section 3.3.1).

Where the target was sure of its newest token the next ones are likely to be easy too, and a block
drafter proposes them in one pass. Where it was not, a drafter that works token by token keeps more
of its proposal.

    H > threshold -> autoregressive arm,  else diffusion arm;   H = -sum p log p in nats
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observation import TEXT_SIGNALS
from draftgym.policies.base import Policy

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

    observes = True

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
    return float(json.loads(THRESHOLD_FILE.read_text(encoding="utf-8"))["threshold"])
