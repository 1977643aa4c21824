"""Fits a forecast of tokens: what each arm commits, from what a server knows of a request.

Traces tell what every arm would have committed at every position, so nothing has to be tried out:
every round of every request is an example for all arms. What a server knows depends on what was
played before, so examples are played: first at random around an arm of each request's own, then
again by the forecast itself, so that it learns where it will be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.envs.load.load import Load, ServedRound
from draftgym.envs.load.requests import Ints
from draftgym.envs.serving.play import Player, play
from draftgym.policies.serving.observation import OF_THE_SERVER, observe, request_features
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.tokens import TokenForecast, TokenNetwork


@dataclass(frozen=True)
class ForecastFitting:
    """How a forecast is fitted (AdamW, squared error).

    Attributes:
        examples: Rounds of requests from each way of playing, at most.
        epochs: Passes over the examples.
        batch_size: Examples per step.
        learning_rate: Peak of the step size, which rises for a tenth of the steps and then falls.
        weight_decay: AdamW's.
        width: Of the network's layers.
        explore: Share of rounds that are played at random.
    """

    examples: int = 400_000
    epochs: int = 8
    batch_size: int = 2048
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    width: int = 64
    explore: float = 0.3


class Exploring:
    """Plays an arm of each request's own, or what somebody chooses, and others now and then.

    Attributes:
        seen: Numbers of the requests that decided, one array a round.
        committed: What each arm would have committed there.

    Args:
        load: The servers.
        player: Who chooses; None plays an arm that is drawn for each request.
        explore: Share of rounds that are played at random.
        keep: Share of rounds that are kept as examples.
        rng: Draws.
    """

    def __init__(
        self,
        load: Load,
        player: Player | None,
        explore: float,
        keep: float,
        rng: np.random.Generator,
    ) -> None:
        self._player, self._explore, self._keep, self._rng = player, explore, keep, rng
        self._own = rng.integers(len(load.texts.arms), size=(load.count, load.settings.requests))
        self.seen, self.committed = list[NDArray[np.float32]](), list[NDArray[np.int64]]()

    def choose(self, load: Load) -> Ints:
        """See `draftgym.envs.serving.play.Player`."""
        kept = load.deciding & (self._rng.uniform(size=load.shape) < self._keep)
        self.seen.append(observe(load)["requests"][kept])
        self.committed.append(load.options().committed[kept])
        if self._player is not None:
            arms = self._player.choose(load)
        else:
            arms = np.take_along_axis(self._own, np.maximum(load.number, 0), -1)
        at_random = self._rng.uniform(size=load.shape) < self._explore
        return np.where(at_random, self._rng.integers(len(load.texts.arms), size=load.shape), arms)

    def learn(self, played: ServedRound) -> None:
        """See `draftgym.envs.serving.play.Player`."""
        if self._player is not None:
            self._player.learn(played)


def fit_forecast(load: Load, settings: ForecastFitting, seed: int = 0) -> TokenForecast:
    """Plays and fits, twice.

    Args:
        load: Servers of training texts; how full they are matters little.
        settings: How.
        seed: Of everything random.
    """
    texts = load.texts
    torch.manual_seed(seed)
    features = request_features(texts.arms, texts.lookups)
    network = TokenNetwork(len(features), len(texts.arms), settings.width)
    forecast, examples = None, list[tuple[Tensor, Tensor]]()
    for turn in range(2):
        rng = np.random.default_rng([seed, turn])
        player = None if forecast is None else PlannedPlayer(forecast, load)
        examples.append(_examples(load, player, settings, rng))
        seen, committed = (torch.cat(parts) for parts in zip(*examples, strict=True))
        _fit(network, seen, committed, settings, rng)
        forecast = TokenForecast(network, texts.arms, features)
    assert forecast is not None
    return forecast


def _examples(
    load: Load, player: Player | None, settings: ForecastFitting, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Numbers of requests `[N, F]`, and what each arm would commit `[N, A]`."""
    rounds = load.count * load.settings.requests * np.mean(load.texts.last - load.texts.first) / 2.5
    keep = min(1.0, settings.examples / rounds)
    exploring = Exploring(load, player, settings.explore, keep, rng)
    play(load, exploring, rng.integers(2**31, size=load.count).tolist())
    seen, committed = np.concatenate(exploring.seen), np.concatenate(exploring.committed)
    kept = rng.permutation(len(seen))[: settings.examples]
    return torch.from_numpy(seen[kept]), torch.from_numpy(committed[kept]).float()


def _fit(
    network: TokenNetwork,
    seen: Tensor,
    committed: Tensor,
    settings: ForecastFitting,
    rng: np.random.Generator,
) -> None:
    """Least squares, weighted by nothing."""
    network.mean.copy_(seen.mean(0))
    network.spread.copy_(seen.std(0).clamp(min=1e-3))
    network.spread[: len(OF_THE_SERVER)] = 1e9  # these say nothing of the text
    network.train().requires_grad_(True)
    size = settings.batch_size
    steps = settings.epochs * -(-len(seen) // size)
    made = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    pace = torch.optim.lr_scheduler.OneCycleLR(
        made, settings.learning_rate, total_steps=steps, pct_start=0.1
    )
    for _ in range(settings.epochs):
        for rows in torch.from_numpy(rng.permutation(len(seen))).split(size):
            loss = (network(seen[rows]) - committed[rows]).square().mean()
            made.zero_grad()
            loss.backward()
            made.step()
            pace.step()
    network.eval().requires_grad_(False)
