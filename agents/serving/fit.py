"""Fits a forecast: how far drafts are accepted, from what a server knows of a request.

Traces tell how far every draft would have been accepted at every position, so nothing has to be
tried out: every round of every request is an example for all arms. What a server knows depends on
what was played before, so examples are played: first at random around an arm of each request's own,
then by the forecast itself, so that it learns where it will be.

The likelihood is that of survival: each token of a draft is accepted or not if those before it
were, and behind the first that is not, and behind the draft's or the text's end, nothing is known.

Notation: N = examples, C = kinds of drafts, J = longest draft, R = rows of all texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from draftgym.decoding.arms import Arm
from draftgym.envs.load.load import Load, ServedRound
from draftgym.envs.load.requests import Ints
from draftgym.envs.load.texts import ServedTexts
from draftgym.envs.serving.play import Player, play
from draftgym.policies.serving.observation import OF_THE_SERVER, observe_requests, request_features
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.tokens import NetworkSize, TokenForecast, TokenNetwork, draft_kinds

LEAST_SEEN = 10
"""How often a token id must be in the texts to be known."""


@dataclass(frozen=True)
class ForecastFitting:
    """How a forecast is fitted (AdamW).

    Attributes:
        examples: Rounds of requests from each way of playing, at most.
        epochs: Passes over the examples.
        batch_size: Examples per step.
        learning_rate: Peak of the step size, which rises for a tenth of the steps and then falls.
        weight_decay: AdamW's.
        width: Of the network's layers.
        dropout: Share of word inputs and of neurons that are left out.
        explore: Share of rounds that are played at random.
    """

    examples: int = 200_000
    epochs: int = 3
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    width: int = 128
    dropout: float = 0.3
    explore: float = 0.3


@dataclass(frozen=True)
class Examples:
    """Requests before rounds.

    Attributes:
        numbers: What is known of each `[N, F]`.
        ids: Token ids `[N, 2 + L]`.
        rows: Where they stand `[N]`.
    """

    numbers: Tensor
    ids: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)


class Exploring:
    """Plays an arm of each request's own, or what somebody chooses, and others now and then.

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
        self._seen: list[tuple[NDArray[np.float32], Ints, Ints]] = []

    def choose(self, load: Load) -> Ints:
        """See `draftgym.envs.serving.play.Player`."""
        kept = load.deciding & (self._rng.uniform(size=load.shape) < self._keep)
        numbers = observe_requests(load)[kept][:, len(OF_THE_SERVER) :]
        self._seen.append((numbers, load.ids[kept], load.row[kept]))
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

    def examples(self, most: int) -> Examples:
        """Those that were kept, so many of them at most."""
        columns = [np.concatenate(column) for column in zip(*self._seen, strict=True)]
        kept = self._rng.permutation(len(columns[-1]))[:most]
        return Examples(*(torch.from_numpy(column[kept]) for column in columns))


def fit_forecast(load: Load, settings: ForecastFitting, seed: int = 0) -> TokenForecast:
    """Plays and fits, twice.

    Args:
        load: Servers of training texts; how full they are matters little.
        settings: How.
        seed: Of everything random.
    """
    texts, forecast = load.texts, None
    features, kinds = request_features(texts.arms, texts.lookups), draft_kinds(texts.arms)
    longest = max((part.length for part in kinds.values()), default=0)
    judged = _judged(texts, kinds, longest)
    known = _known_words(texts)
    sizes = len(features) - len(OF_THE_SERVER), 2 + len(texts.lookups), len(known)
    made = NetworkSize(*sizes, len(kinds), longest, width=settings.width, dropout=settings.dropout)
    for turn in range(2):
        rng = np.random.default_rng([seed, turn])
        torch.manual_seed(seed)
        player = None if forecast is None else PlannedPlayer(forecast, load)
        examples = _played(load, player, settings, rng)
        network = TokenNetwork(made)
        network.known.copy_(known)
        _fit(network, examples, judged, settings, rng)
        forecast = TokenForecast(network, texts.arms, features)
    assert forecast is not None
    return forecast


def _known_words(texts: ServedTexts) -> Tensor:
    """Token ids that are frequent enough, ascending; the most frequent one if none is."""
    ids, counts = np.unique(texts.ids[:, 0], return_counts=True)
    return torch.from_numpy(ids[counts >= min(LEAST_SEEN, counts.max())])


def _judged(texts: ServedTexts, kinds: Mapping[str, Arm], longest: int) -> tuple[Tensor, Tensor]:
    """Tokens of every kind of draft that are accepted, and that are judged, int8 `[R, C]` each."""
    made = np.zeros((2, len(texts.ids), len(kinds)), np.int8)
    for text, first in zip(texts.texts, texts.first, strict=True):
        mine = slice(first, first + len(text))
        left = np.arange(len(text))[::-1]  # what follows the text's end nobody knows
        for column, part in enumerate(kinds.values()):
            arm = text.arms[str(part)]
            depth = np.minimum(arm.depth, left)
            accepted = np.minimum(arm.committed - 1, depth)
            made[:, mine, column] = accepted, np.minimum(accepted + 1, depth)
    accepted, judged = torch.from_numpy(made)
    return accepted, judged


def _played(
    load: Load, player: Player | None, settings: ForecastFitting, rng: np.random.Generator
) -> Examples:
    rounds = load.count * load.settings.requests * np.mean(load.texts.last - load.texts.first) / 2.5
    keep = min(1.0, settings.examples / rounds)
    exploring = Exploring(load, player, settings.explore, keep, rng)
    play(load, exploring, rng.integers(2**31, size=load.count).tolist())
    return exploring.examples(settings.examples)


def _fit(
    network: TokenNetwork,
    examples: Examples,
    judged: tuple[Tensor, Tensor],
    settings: ForecastFitting,
    rng: np.random.Generator,
) -> None:
    """Maximum likelihood."""
    network.mean.copy_(examples.numbers.mean(0))
    network.spread.copy_(examples.numbers.std(0).clamp(min=1e-3))
    network.train().requires_grad_(True)
    steps = settings.epochs * -(-len(examples) // settings.batch_size)
    made = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    pace = torch.optim.lr_scheduler.OneCycleLR(
        made, settings.learning_rate, total_steps=steps, pct_start=0.1
    )
    step = torch.arange(network.size.longest)
    for rows in _batches(len(examples), settings, rng):
        at = examples.rows[rows]
        accepted, told = (one[at][..., None] for one in judged)
        odds = network(examples.numbers[rows], examples.ids[rows])
        loss = nn.functional.binary_cross_entropy_with_logits(
            odds, (step < accepted).float(), (step < told).float(), reduction="sum"
        )
        made.zero_grad()
        (loss / len(rows)).backward()
        made.step()
        pace.step()
    network.eval().requires_grad_(False)


def _batches(count: int, settings: ForecastFitting, rng: np.random.Generator) -> Iterator[Tensor]:
    """Indices of examples, batch by batch, each once an epoch."""
    for _ in range(settings.epochs):
        yield from torch.from_numpy(rng.permutation(count)).split(settings.batch_size)
