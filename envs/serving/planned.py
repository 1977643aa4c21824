"""Plays batches by what arms are expected to commit, at the price that time has just now."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.load import Load, ServedRound
from draftgym.envs.load.requests import Floats, Ints
from draftgym.envs.serving.observation import observe_load
from draftgym.envs.serving.planning import best_arms

DECAY = 0.98
"""Weight of the past in the running speed, per round."""
FIRST_ROUNDS = 10.0
"""Rounds of plain decoding that it begins with."""


class Forecast(Protocol):
    """Whoever says what arms should commit."""

    arms: tuple[Arm, ...]

    def tokens(self, requests: NDArray[np.float32], deciding: NDArray[np.bool_]) -> Floats:
        """Expected tokens `[n, K, A]`; see `draftgym.policies.serving.tokens.TokenForecast`."""


class RunningPrice:
    """Tokens per second that servers are writing, by how many requests they write for.

    A second is worth what is written in it, and that is more the fuller the server is. So the price
    is kept for batches of 1, 2, 3-4, 5-8, ... requests apart.

    Args:
        load: The servers.
    """

    def __init__(self, load: Load) -> None:
        self._copies = load.settings.copies
        sizes = 2 ** np.arange((load.shape[1] * self._copies - 1).bit_length() + 1)
        seconds = FIRST_ROUNDS * load.costs.pass_seconds(sizes, sizes, 0)
        self._tokens = np.tile(FIRST_ROUNDS * sizes, (load.count, 1)).astype(float)
        self._seconds = np.tile(seconds, (load.count, 1))

    def now(self, load: Load) -> Floats:
        """The price of the next round `[n]`."""
        at = np.arange(load.count), self._kind(load.deciding)
        return np.asarray(self._tokens[at] / self._seconds[at])

    def tell(self, played: ServedRound) -> None:
        """Takes a round in; those in which prompts were read say nothing of the price."""
        judged = played.deciding.any(-1) & ~(played.read > 0).any(-1)
        at = np.flatnonzero(judged), self._kind(played.deciding)[judged]
        self._tokens[at] = DECAY * self._tokens[at] + played.committed.sum(-1)[judged]
        self._seconds[at] = DECAY * self._seconds[at] + played.seconds[judged]

    def _kind(self, deciding: NDArray[np.bool_]) -> Ints:
        size = np.maximum(self._copies * deciding.sum(-1), 1)
        return np.asarray(np.ceil(np.log2(size)).astype(np.int64))


class PlannedPlayer:
    """Plays the round that should be worth most, by a forecast of tokens.

    How much each arm drafts must be known before: drafters that look up are asked first
    (`ServerSettings.look_up`), and no arm may stop where it is not sure.

    Args:
        forecast: Says what arms commit; None knows it (the oracle of rounds).
        load: The servers.
        price: Tokens per second; None keeps account.

    Raises:
        DraftgymError: The forecast is of other arms, or drafts of unknown length are among them.
    """

    def __init__(self, forecast: Forecast | None, load: Load, price: float | None = None) -> None:
        texts = load.texts
        if forecast is not None:
            if tuple(map(str, forecast.arms)) != tuple(map(str, texts.arms)):
                raise DraftgymError(
                    f"a forecast of {', '.join(map(str, forecast.arms))}",
                    f"serve these arms, not {', '.join(map(str, texts.arms))}",
                )
            unseen = [name for name in texts.drafters if name in LOOKUPS]
            unseen = [name for name in unseen if name not in texts.lookups]
            unsure = [str(arm) for arm in texts.arms if any(part.sure for part in arm.parts)]
            if unseen or unsure:
                raise DraftgymError(
                    f"nobody knows beforehand how much {', '.join([*unseen, *unsure])} drafts",
                    "observe lookups (look_up), and leave out arms with ~",
                )
        self._forecast, self._fixed = forecast, price
        self._running = RunningPrice(load)

    def choose(self, load: Load) -> Ints:
        """See `draftgym.envs.serving.play.Player`."""
        facts = load.options()
        if self._forecast is None:
            tokens = facts.committed.astype(float)
        else:
            tokens = self._forecast.tokens(observe_load(load)["requests"], load.deciding)
        price = self._running.now(load) if self._fixed is None else self._fixed
        return best_arms(load, facts, tokens, price)

    def learn(self, played: ServedRound) -> None:
        """See `draftgym.envs.serving.play.Player`."""
        self._running.tell(played)
