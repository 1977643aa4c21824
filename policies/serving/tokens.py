"""A network that says how many tokens each arm should commit, for every request of a batch.

What a request will accept does not depend on who else is in its batch; what that is worth does. So
one small network reads each request by itself, the same for all, and the batch is planned with what
it says and with what rounds cost (`draftgym.policies.serving.planning`): one network serves any
number of requests, any load and any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.folder import (
    AGAIN,
    BODY,
    FORECAST,
    PolicyTarget,
    read_policy,
    write_policy,
)

LIMIT = 4.0
"""Standard deviations at which inputs are cut: texts go on for longer than those of training."""


class TokenNetwork(nn.Module):
    """Expected tokens of every arm.

    Args:
        numbers: Numbers of a request, F.
        arms: A.
        width: Of both layers.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, numbers: int, arms: int, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("spread", torch.ones(numbers))
        self.layers = nn.Sequential(
            *(nn.Linear(numbers, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, arms),
        )

    def forward(self, requests: Tensor) -> Tensor:
        """Tokens, at least 1, `[..., A]`.

        Args:
            requests: Their numbers `[..., F]`.
        """
        seen = ((requests - self.mean) / self.spread).clamp(-LIMIT, LIMIT)
        accepted: Tensor = nn.functional.softplus(self.layers(seen))
        return 1 + accepted


class TokenForecast:
    """Says what arms should commit, from observations of `draftgym/Serving-v0`.

    Args:
        network: It.
        arms: Its arms, in order.
        features: Names of the numbers that it reads, in order.
    """

    def __init__(self, network: TokenNetwork, arms: Sequence[Arm], features: Sequence[str]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.arms, self.features = tuple(arms), tuple(features)

    def tokens(self, requests: NDArray[Any], deciding: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Expected tokens `[n, K, A]`; 1 where nobody decides.

        Args:
            requests: Of the observation `[n, K, F]`.
            deciding: Whose arms are read `[n, K]`.
        """
        found = np.ones((*deciding.shape, len(self.arms)))
        with torch.inference_mode():
            found[deciding] = self.network(torch.from_numpy(requests[deciding])).numpy()
        return found


def save_forecast(
    forecast: TokenForecast, target: PolicyTarget, folder: Path, provenance: Mapping[str, Any]
) -> None:
    """Writes the deployable form.

    Args:
        forecast: It.
        target: Whose texts it was fitted to.
        folder: Where to.
        provenance: How it was made.
    """
    facts = {
        "width": forecast.network.layers[0].out_features,
        "features": list(forecast.features),
        "provenance": dict(provenance),
    }
    of = target.name, target.fingerprint, facts
    write_policy(folder, FORECAST, forecast.network, forecast.arms, *of)


def load_forecast(folder: Path, target: PolicyTarget) -> TokenForecast:
    """Loads what `save_forecast` wrote.

    Raises:
        DraftgymError: Not such a folder, damaged files, or a forecast of another target.
    """
    stored = read_policy(folder, FORECAST, target, {"width", "features"})
    try:
        features = tuple(map(str, stored.body["features"]))
        width = int(stored.body["width"])
    except (TypeError, ValueError) as error:
        raise DraftgymError(f"{folder / BODY}: {error}", AGAIN) from error
    sizes = len(features), len(stored.arms), width
    return TokenForecast(stored.load(lambda: TokenNetwork(*sizes)), stored.arms, features)
