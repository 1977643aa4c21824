"""A trained router: a network that scores every arm, and the policy loaded from its folder.

It is trained in torch and asked in numpy: a round has just driven all caches out, and then torch's
way to each of a dozen small operations takes twice as long as numpy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import signal_names
from draftgym.decoding.observers.two_stage import two_stage_names
from draftgym.policies.base import Policy
from draftgym.policies.folder import (
    AGAIN,
    ROUTER,
    PolicyTarget,
    policy_name,
    read_policy,
    write_policy,
)


class RouterEncoder(nn.Module):
    """Turns an observation into features; training and deployment share it.

    The hidden state has hundreds of entries and says much about one text and little about the
    next, so it passes through a neck; without that a few hundred texts are learned by heart.

    Args:
        signals: Entries of `signals`.
        hidden: Width of the target's hidden state.
        width: Features.
        neck: What the hidden state is narrowed to.
        dropout: Share of the hidden state that is left out at random while training.
    """

    def __init__(
        self, signals: int, hidden: int, width: int = 64, neck: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden_norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(hidden, neck)
        self.mix = nn.Linear(neck + signals, width)

    def forward(self, signals: Tensor, hidden: Tensor) -> Tensor:
        """Features `[n, width]` of `signals [n, s]` and `hidden [n, d]`."""
        compressed = torch.tanh(self.hidden(self.dropout(self.hidden_norm(hidden))))
        return torch.tanh(self.mix(torch.cat([compressed, signals], dim=-1)))


class RouterNetwork(nn.Module):
    """Encoder and one score per arm."""

    def __init__(
        self,
        signals: int,
        hidden: int,
        arms: int,
        width: int = 64,
        neck: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = RouterEncoder(signals, hidden, width, neck, dropout)
        self.scores = nn.Linear(width, arms)

    def forward(self, signals: Tensor, hidden: Tensor) -> Tensor:
        """Scores `[n, arms]`; softmax of them is the policy."""
        out: Tensor = self.scores(self.encoder(signals, hidden))
        return out

    def on_host(self) -> Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]:
        """What `forward` makes of arrays, without dropout; it goes with the weights as they are."""
        layers = self.encoder.hidden, self.encoder.mix, self.scores
        told = [one.detach().cpu().numpy() for each in layers for one in (each.weight.T, each.bias)]
        narrow, narrow_bias, mix, mix_bias, out, out_bias = told
        eps, width = self.encoder.hidden_norm.eps, np.float32(max(1, len(narrow)))  # 0 is allowed

        def scores(
            signals: NDArray[np.float32], hidden: NDArray[np.float32]
        ) -> NDArray[np.float32]:
            centred = hidden - hidden.sum(-1, keepdims=True) / width
            spread = np.sqrt(np.square(centred).sum(-1, keepdims=True) / width + np.float32(eps))
            compressed = np.tanh(centred / spread @ narrow + narrow_bias)
            features = np.tanh(np.concatenate([compressed, signals], -1) @ mix + mix_bias)
            return np.asarray(features @ out + out_bias, dtype=np.float32)

        return scores


class LearnedPolicy(Policy):
    """Picks an arm with a trained network.

    Args:
        network: The network.
        arms: Arms in the network's order.
        name: How tables call it.
        seed: Seed of the choices when asked to sample.
        exploration_rate: Share of those choices that is any arm, the others being the best, as
            DQN's are; None draws from the softmax of the scores, as PPO does.
        levels: What it chooses from while an arm drafts, if it decides twice a round.
    """

    observes = True

    def __init__(
        self,
        network: RouterNetwork,
        arms: Sequence[Arm],
        name: str = "learned",
        seed: int = 0,
        exploration_rate: float | None = None,
        levels: Sequence[float] = (),
    ) -> None:
        self.levels = tuple(levels)
        self.network = network.eval().requires_grad_(False)
        self._scores = self.network.on_host()
        self.reads_states = network.encoder.hidden.in_features > 0
        self.arms = tuple(arms)
        self.name, self.exploration_rate = name, exploration_rate
        self.rng = np.random.default_rng(seed)

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """The best-scored arm, or one drawn as in training."""
        hidden = observation["hidden"] if self.reads_states else observation["hidden"][:, :0]
        scores: NDArray[Any] = self._scores(observation["signals"], hidden)
        if not deterministic and self.exploration_rate is None:
            scores = scores + self.rng.gumbel(size=scores.shape)
        best = np.asarray(scores.argmax(-1), dtype=np.int64)
        if deterministic or not self.exploration_rate:
            return best
        explores = self.rng.random(count) < self.exploration_rate
        return np.where(explores, self.rng.integers(scores.shape[-1], size=count), best)


def save_learned_policy(
    network: RouterNetwork,
    arms: Sequence[Arm],
    target: PolicyTarget,
    folder: Path,
    provenance: Mapping[str, Any],
    exploration_rate: float | None = None,
    levels: Sequence[float] = (),
) -> None:
    """Writes the deployable form of a router that was trained for this target.

    Args:
        network: Its network.
        arms: Arms in the network's order.
        target: Whom it was trained for.
        folder: Where to.
        provenance: How it was made.
        exploration_rate: See `LearnedPolicy`.
        levels: See `LearnedPolicy`.
    """
    facts = {
        "signals": _names(arms, levels),
        "levels": list(levels),
        "hidden_size": network.encoder.hidden.in_features,
        "width": network.scores.in_features,
        "neck": network.encoder.hidden.out_features,
        "exploration_rate": exploration_rate,
        "provenance": dict(provenance),
    }
    write_policy(folder, ROUTER, network, arms, target.name, target.fingerprint, facts)


def load_learned_policy(folder: Path, target: PolicyTarget) -> LearnedPolicy:
    """Loads an exported router.

    Raises:
        DraftgymError: Not a router's folder, damaged files, or a router of another target.
    """
    stored = read_policy(folder, ROUTER, target, {"hidden_size", "signals", "width", "neck"})
    body, arms = stored.body, stored.arms
    levels = body.get("levels", [])
    if not isinstance(levels, list) or not all(_is_share(level) for level in levels):
        raise DraftgymError(f"policy {folder} has levels {levels!r}", AGAIN)
    if body["signals"] != _names(arms, levels):
        raise DraftgymError(f"policy {folder} reads signals that this version lacks", AGAIN)

    def build() -> RouterNetwork:
        sizes = len(body["signals"]), body["hidden_size"], max(len(arms), len(levels))
        return RouterNetwork(*sizes, body["width"], body["neck"])

    rate = body.get("exploration_rate")
    if rate is not None and not _is_share(rate):
        raise DraftgymError(f"policy {folder} explores at a rate of {rate!r}", AGAIN)
    name = policy_name(folder)
    return LearnedPolicy(stored.load(build), arms, name=name, exploration_rate=rate, levels=levels)


def _names(arms: Sequence[Arm], levels: Sequence[float]) -> list[str]:
    return two_stage_names(arms) if levels else signal_names(arms)


def _is_share(given: Any) -> bool:
    return isinstance(given, float | int) and not isinstance(given, bool) and 0 <= given <= 1
