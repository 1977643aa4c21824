"""The requests of an episode: when each came, what it asks for, and when it was served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.envs.load.arrivals import Arrivals
from draftgym.envs.load.texts import ServedTexts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Requests:
    """N requests of each of n servers.

    Args:
        texts: What they may ask for.
        arrivals: When they come.
        mixture: See `ServedTexts.draw`.
        count: n.
        each: N.

    Attributes:
        arrival: Seconds at which each comes `[n, N]`.
        text: What it asks for `[n, N]`.
        first_token: When its first token was there `[n, N]`; infinite before.
        end: When its last one was `[n, N]`; infinite before.
        head: Requests that have left the queue `[n]`.
    """

    def __init__(
        self,
        texts: ServedTexts,
        arrivals: Arrivals,
        mixture: Mapping[str, float] | None,
        count: int,
        each: int,
    ) -> None:
        self._texts, self._arrivals, self._mixture = texts, arrivals, mixture
        self.arrival = np.zeros((count, each))
        self.text = np.zeros((count, each), np.int64)
        self.first_token, self.end = np.full((2, count, each), np.inf)
        self.head = np.zeros(count, np.int64)

    def begin(self, rng: Sequence[np.random.Generator], servers: Ints) -> None:
        """Draws new requests for these servers (indices), each from its own generator."""
        each = self.arrival.shape[1]
        for server in servers.tolist():
            self.arrival[server] = self._arrivals.times(rng[server], each)
            self.text[server] = self._texts.draw(rng[server], each, self._mixture)
        self.first_token[servers] = self.end[servers] = np.inf
        self.head[servers] = 0

    def waiting(self, clock: Floats) -> Ints:
        """Requests in each queue at a time `[n]`."""
        return np.asarray((self.arrival <= clock[:, None]).sum(-1) - self.head)

    def next_arrival(self) -> Floats:
        """When the next request that is not served yet comes, or came `[n]`; infinite behind."""
        each = self.arrival.shape[1]
        index = np.minimum(self.head, each - 1)
        come = np.take_along_axis(self.arrival, index[:, None], 1)[:, 0]
        return np.where(self.head < each, come, np.inf)

    @property
    def served(self) -> Mask:
        """Whether all requests of a server are `[n]`."""
        return np.asarray(np.isfinite(self.end).all(-1))

    @property
    def tokens(self) -> Ints:
        """New tokens of what each asks for `[n, N]`."""
        return np.asarray((self._texts.last - self._texts.first)[self.text] + 1)

    @property
    def first_token_seconds(self) -> Floats:
        """Seconds from each arrival to the first token `[n, N]`; infinite before."""
        return self.first_token - self.arrival

    @property
    def token_seconds(self) -> Floats:
        """Mean seconds between each request's tokens `[n, N]`; infinite before its end."""
        ended = np.isfinite(self.end)
        since = np.where(ended, self.end, 0.0) - np.where(ended, self.first_token, 0.0)
        return np.where(ended, since / (self.tokens - 1), np.inf)
