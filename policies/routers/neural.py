"""WhiFlash-Neural: routing between two arms by a predicted difference (arXiv 2606.07710, 3.3.2).

A small network reads the target's last hidden state and says how many more tokens the first arm
would commit than the second:

    dAL > threshold -> first arm,  else second arm;   dAL ~ committed(first) - committed(second)

The paper leaves the threshold to calibration. `draftgym.agents.router.neural` derives it from what
rounds cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.base import Policy
from draftgym.policies.folder import (
    AGAIN,
    BODY,
    NEURAL,
    PolicyTarget,
    policy_name,
    read_policy,
    write_policy,
)


class DifferenceNetwork(nn.Module):
    """Linear to an eighth, GELU, dropout, linear to one: the paper's network.

    Args:
        hidden: Width of the target's hidden state.
        dropout: Rate while training; the paper does not name one.
    """

    def __init__(self, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        narrow = max(1, hidden // 8)
        self.narrow = nn.Linear(hidden, narrow)
        self.dropout = nn.Dropout(dropout)
        self.difference = nn.Linear(narrow, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Predicted dAL in tokens `[n]` of hidden states `[n, d]`."""
        features = self.dropout(nn.functional.gelu(self.narrow(hidden)))
        out: Tensor = self.difference(features)
        return out.squeeze(-1)


class NeuralPolicy(Policy):
    """First arm where it is predicted to commit enough more tokens, second arm elsewhere.

    Args:
        network: Predicts the difference.
        arms: The two arms.
        threshold: Tokens that the first arm must win by.
        name: How tables call it.

    Raises:
        DraftgymError: There are not two arms, or the threshold is not a number.
    """

    observes = reads_states = True

    def __init__(
        self,
        network: DifferenceNetwork,
        arms: Sequence[Arm],
        threshold: float,
        name: str = "neural",
    ) -> None:
        if len(arms) != 2:
            raise DraftgymError(f"policy {name!r} has {len(arms)} arms", "give it two")
        if isinstance(threshold, bool) or not math.isfinite(threshold):
            raise DraftgymError(f"policy {name!r} has threshold {threshold}", "give it a number")
        self.network = network.eval().requires_grad_(False)
        self.arms = tuple(arms)
        self.threshold = float(threshold)
        self.name = name

    @torch.inference_mode()
    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """0 where the predicted difference is above the threshold, 1 elsewhere."""
        difference = self.network(torch.from_numpy(observation["hidden"])).numpy()
        return np.where(difference > self.threshold, 0, 1).astype(np.int64)


def save_neural_policy(
    policy: NeuralPolicy,
    target: PolicyTarget,
    folder: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Writes the deployable form.

    Args:
        policy: The policy.
        target: Whom it was trained for.
        folder: Where to.
        provenance: How it was made.
    """
    facts = {
        "hidden_size": policy.network.narrow.in_features,
        "threshold": policy.threshold,
        "unit": "tokens",
        "provenance": dict(provenance),
    }
    network, arms = policy.network, policy.arms
    write_policy(folder, NEURAL, network, arms, target.name, target.fingerprint, facts)


def load_neural_policy(folder: Path, target: PolicyTarget) -> NeuralPolicy:
    """Loads an exported policy.

    Raises:
        DraftgymError: Not such a folder, damaged files, or a policy of another target.
    """
    stored = read_policy(folder, NEURAL, target, {"hidden_size", "threshold"})
    network = stored.load(lambda: DifferenceNetwork(stored.body["hidden_size"]))
    try:
        return NeuralPolicy(network, stored.arms, stored.body["threshold"], policy_name(folder))
    except (DraftgymError, TypeError) as error:
        reason = error.problem if isinstance(error, DraftgymError) else str(error)
        raise DraftgymError(f"{folder / BODY}: {reason}", AGAIN) from error
