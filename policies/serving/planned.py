"""Plays batches by what arms are expected to commit, at the price that time has just now."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.planning import best_arms
from draftgym.policies.serving.servers import Floats, Ints, Mask, RowFacts, Servers

DECAY = 0.998
"""Weight of the past in the running speed, per round."""
FIRST_ROUNDS = 10.0
"""Rounds of plain decoding that it begins with."""
EAGERNESS = 0.87
"""What forecasts are planned at, of the running price: the best of several guesses is mostly one
that was too high, and tokens that are not drafted cannot be accepted."""


class Forecast(Protocol):
    """Whoever says what arms should commit."""

    arms: tuple[Arm, ...]

    def tokens(self, servers: Servers, facts: RowFacts) -> Floats:
        """Expected tokens `[n, K, A]`; see `draftgym.policies.serving.tokens.TokenForecast`."""


class PlayedRound(Protocol):
    """A round of n servers, as far as prices go by it."""

    @property
    def deciding(self) -> Mask:
        """Who was written `[n, K]`."""

    @property
    def committed(self) -> Ints:
        """Tokens that each got `[n, K]`."""

    @property
    def read(self) -> Ints:
        """Rows of prompts in the pass `[n, K]`."""

    @property
    def seconds(self) -> Floats:
        """What it took `[n]`."""


class RunningPrice:
    """Tokens per second that servers are writing, by how many requests they write for.

    A second is worth what is written in it, and that is more the fuller the server is. So the price
    is kept for batches of 1, 2, 3-4, 5-8, ... requests apart.

    Args:
        servers: The servers.
    """

    def __init__(self, servers: Servers) -> None:
        self._costs, self._copies = servers.costs, servers.copies
        self._tokens, self._seconds = np.zeros((2, servers.shape[0], 0))

    def now(self, servers: Servers) -> Floats:
        """The price of the next round `[n]`."""
        at = np.arange(len(servers.deciding)), self._kind(servers.deciding)
        return np.asarray(self._tokens[at] / self._seconds[at])

    def tell(self, played: PlayedRound) -> None:
        """Takes a round in; those in which prompts were read say nothing of the price."""
        judged = played.deciding.any(-1) & ~(played.read > 0).any(-1)
        at = np.flatnonzero(judged), self._kind(played.deciding)[judged]
        self._tokens[at] = DECAY * self._tokens[at] + played.committed.sum(-1)[judged]
        self._seconds[at] = DECAY * self._seconds[at] + played.seconds[judged]

    def _kind(self, deciding: Mask) -> Ints:
        size = np.maximum(self._copies * deciding.sum(-1), 1)
        kind = np.ceil(np.log2(size)).astype(np.int64)
        self._begin(int(kind.max()) + 1)
        return np.asarray(kind)

    def _begin(self, kinds: int) -> None:
        """Begins accounts of so many sizes, as far as there are none, with plain decoding."""
        known, most = self._tokens.shape[1], self._costs.most_texts
        if kinds <= known:
            return
        sizes = np.minimum(2 ** np.arange(known, kinds), most or np.inf)
        fresh = FIRST_ROUNDS * np.stack([sizes, self._costs.pass_seconds(sizes, sizes, 0)])
        more = np.broadcast_to(fresh[:, None], (2, len(self._tokens), len(sizes)))
        both = np.concatenate([[self._tokens, self._seconds], more], -1)
        self._tokens, self._seconds = both


class PlannedPlayer:
    """Plays the round that should be worth most, by a forecast of tokens.

    How much each arm drafts must be known before: drafters that look up are asked first
    (`ServerSettings.look_up`), and no arm may stop where it is not sure.

    Args:
        forecast: Says what arms commit; None knows it (the oracle of rounds).
        servers: The servers.
        price: Tokens per second; None keeps account.

    Raises:
        DraftgymError: The forecast is of other arms, or drafts of unknown length are among them.
    """

    def __init__(
        self, forecast: Forecast | None, servers: Servers, price: float | None = None
    ) -> None:
        if forecast is not None:
            if tuple(map(str, forecast.arms)) != tuple(map(str, servers.arms)):
                raise DraftgymError(
                    f"a forecast of {', '.join(map(str, forecast.arms))}",
                    f"serve these arms, not {', '.join(map(str, servers.arms))}",
                )
            unseen = [name for name in servers.drafters if name in LOOKUPS]
            unseen = [name for name in unseen if name not in servers.lookups]
            unsure = [str(arm) for arm in servers.arms if any(part.sure for part in arm.parts)]
            if unseen or unsure:
                raise DraftgymError(
                    f"nobody knows beforehand how much {', '.join([*unseen, *unsure])} drafts",
                    "observe lookups (look_up), and leave out arms with ~",
                )
        self._forecast, self._fixed = forecast, price
        self._running = RunningPrice(servers)

    def choose(self, servers: Servers) -> Ints:
        """See `draftgym.envs.serving.play.Player`."""
        facts = servers.options()
        if self._forecast is None:
            tokens = facts.committed.astype(float)
        else:
            tokens = self._forecast.tokens(servers, facts)
        price = self._running.now(servers) if self._fixed is None else self._fixed
        price = price * (1.0 if self._forecast is None else EAGERNESS)
        return best_arms(servers, facts, tokens, price)

    def learn(self, played: PlayedRound) -> None:
        """See `draftgym.envs.serving.play.Player`."""
        self._running.tell(played)
