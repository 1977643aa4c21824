"""A network that says how far drafts should be accepted, for every request of a batch.

What a request will accept does not depend on who else is in its batch; what that is worth does. So
one small network reads each request by itself, the same for all, and the batch is planned with what
it says and with what rounds cost (`draftgym.policies.serving.planning`): one network serves any
number of requests, any load and any machine.

For each kind of draft it gives the chance that a token is accepted if all before it were. A draft
of k tokens should then commit 1 + P(1) + ... + P(k), with P(j) the chance that j are accepted; so
long and short drafts learn from each other, and a lookup counts with the tokens that it found.

Notation: A = arms, C = kinds of drafts (chains of a drafter are one), J = longest draft, L =
drafters that look up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.policies.folder import (
    AGAIN,
    BODY,
    FORECAST,
    PolicyTarget,
    read_policy,
    write_policy,
)
from draftgym.policies.serving.observation import OF_THE_SERVER, observe_requests
from draftgym.policies.serving.servers import RowFacts, Servers

LIMIT = 4.0
"""Standard deviations at which inputs are cut: texts go on for longer than those of training."""


@dataclass(frozen=True)
class NetworkSize:
    """What a network is made of.

    Attributes:
        numbers: Numbers of a request that it reads.
        ids: Token ids that it reads, 2 + L.
        words: Token ids that it knows, 1 or more; all others are one to it.
        kinds: C.
        longest: J.
        width: Of both layers.
        word_width: Numbers that stand for a token id.
        dropout: Share of inputs and neurons that training leaves out.
    """

    numbers: int
    ids: int
    words: int
    kinds: int
    longest: int
    width: int = 128
    word_width: int = 8
    dropout: float = 0.3


class TokenNetwork(nn.Module):
    """Chances of acceptance for every kind of draft.

    Args:
        size: What it is made of.
    """

    mean: Tensor
    spread: Tensor
    known: Tensor

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.zeros(size.numbers))
        self.register_buffer("spread", torch.ones(size.numbers))
        self.register_buffer("known", torch.zeros(size.words, dtype=torch.int64))
        self.words = nn.Embedding(size.ids * (size.words + 1), size.word_width)
        nn.init.normal_(self.words.weight, std=0.1)
        wide, drop = size.width, size.dropout
        read = size.numbers + size.ids * size.word_width
        self.layers = nn.Sequential(
            *(nn.Linear(read, wide), nn.ReLU(), nn.Dropout(drop)),
            *(nn.Linear(wide, wide), nn.ReLU(), nn.Dropout(drop)),
            nn.Linear(wide, size.kinds * size.longest),
        )
        self.drop = nn.Dropout(drop)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """Log-odds that a token is accepted if those before it are `[N, C, J]`.

        Args:
            numbers: What is known of requests `[N, F]`.
            ids: Token ids `[N, 2 + L]`.
        """
        seen = ((numbers - self.mean) / self.spread).clamp(-LIMIT, LIMIT)
        words = self.drop(self.words(self._places(ids)).flatten(1))
        odds: Tensor = self.layers(torch.cat([seen, words], 1))
        return odds.view(-1, self.size.kinds, self.size.longest)

    def accepted(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """Expected accepted tokens of drafts of 0 to J tokens `[N, C, J + 1]`."""
        reached = self(numbers, ids).sigmoid().cumprod(-1)
        return nn.functional.pad(reached.cumsum(-1), (1, 0))

    def _places(self, ids: Tensor) -> Tensor:
        """Rows of the table of words; the last of each is that of unknown ids."""
        words = self.size.words
        at = torch.searchsorted(self.known, ids.contiguous()).clamp(max=words - 1)
        at = torch.where(self.known[at] == ids, at, words)
        return at + torch.arange(ids.shape[1]) * (words + 1)


def draft_kinds(arms: Sequence[Arm]) -> dict[str, Arm]:
    """The longest part of each kind of draft; chains of a drafter are one, every tree is another's.

    Args:
        arms: What there is to choose from.
    """
    longest: dict[str, Arm] = {}
    for part in sorted((part.whole for arm in arms for part in arm.parts), key=lambda p: p.length):
        longest[_kind(part)] = part
    return longest


class TokenForecast:
    """Says what arms should commit.

    Args:
        network: It.
        arms: What there is to choose from.
        features: Names of the numbers that it reads, in order.
    """

    def __init__(self, network: TokenNetwork, arms: Sequence[Arm], features: Sequence[str]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.arms, self.features = tuple(arms), tuple(features)
        kinds, names = list(draft_kinds(arms)), drafter_names(arms)
        self._kind = np.zeros((len(arms), len(names)), np.int64)
        for index, arm in enumerate(arms):
            for part in arm.parts:
                self._kind[index, names.index(part.drafter)] = kinds.index(_kind(part.whole))

    def tokens(self, servers: Servers, facts: RowFacts) -> NDArray[np.float64]:
        """Expected tokens `[n, K, A]`; 1 where nobody decides.

        Args:
            servers: The servers.
            facts: Their `options`.
        """
        deciding = servers.deciding
        requests, ids = observe_requests(servers)[deciding], servers.ids[deciding]
        found = np.ones((*deciding.shape, len(self.arms)))
        if self._kind.size:
            depth = np.where(facts.verified, facts.steps, 0)[deciding]
            every = np.arange(len(depth))[:, None, None]
            accepted = self.accepted(requests, ids)[every, self._kind, depth]
            found[deciding] += accepted.max(-1)
        return found

    def accepted(self, requests: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Expected accepted tokens of every kind of draft, by its length `[N, C, J + 1]`.

        Args:
            requests: What is observed of some requests `[N, F]`.
            ids: Token ids of the same `[N, 2 + L]`.
        """
        numbers = torch.from_numpy(requests[:, len(OF_THE_SERVER) :].astype(np.float32))
        with torch.inference_mode():
            told = self.network.accepted(numbers, torch.from_numpy(ids)).double()
        return np.asarray(told)


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
        "size": asdict(forecast.network.size),
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
    stored = read_policy(folder, FORECAST, target, {"size", "features"})
    try:
        features = tuple(map(str, stored.body["features"]))
        size = NetworkSize(**stored.body["size"])
    except (TypeError, ValueError) as error:
        raise DraftgymError(f"{folder / BODY}: {error}", AGAIN) from error
    return TokenForecast(stored.load(lambda: TokenNetwork(size)), stored.arms, features)


def _kind(part: Arm) -> str:
    return part.drafter if part.nodes is None else str(part)
