"""What a round of a server is worth: tokens at a price of time, or requests that waited little.

Under load that a server can bear, all policies write the same tokens; who is faster leaves its
server idle sooner. So goodput counts busy seconds alone, and what users feel is the latency.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.load import Load, ServedRound
from draftgym.envs.load.requests import Mask, Requests
from draftgym.envs.load.settings import GOODPUT, LATENCY, OBJECTIVES, LatencyObjective
from draftgym.envs.reward import FIRST_PASSES, RoundReward


def within(requests: Requests, objective: LatencyObjective) -> Mask:
    """Which requests were served as fast as they should be `[n, N]`; False before their end."""
    first = requests.first_token_seconds <= objective.first_token
    return np.asarray(first & (requests.token_seconds <= objective.per_token))


class ServingReward:
    """Rewards the rounds of servers.

    Args:
        load: Whose rounds.
        objective: `goodput`: tokens, minus busy seconds at a price. `latency`: the share of an
            episode's requests that end in this round within their `LatencyObjective`, so that the
            return is the share of all.
        price: Of `goodput`: tokens per second, or `goodput` for the running speed.

    Raises:
        DraftgymError: Another objective or price.
    """

    def __init__(self, load: Load, objective: str = GOODPUT, price: float | str = GOODPUT) -> None:
        if objective not in OBJECTIVES:
            raise DraftgymError(
                f"unknown objective {objective!r}", f"use {' or '.join(OBJECTIVES)}"
            )
        self._load, self.objective = load, objective
        texts = load.settings.places * load.settings.copies
        seconds = float(load.costs.pass_seconds(texts, texts, 0))
        self._rounds = RoundReward(price, texts / seconds, FIRST_PASSES * seconds)

    @property
    def price(self) -> float:
        """Tokens per second."""
        return self._rounds.price

    def restart(self) -> None:
        """Forgets the running speed."""
        self._rounds.restart()

    def __call__(self, played: ServedRound) -> NDArray[np.float64]:
        """Rewards of a round `[n]`."""
        if self.objective != LATENCY:
            return self._rounds(played.committed.sum(-1), played.seconds)
        load, rewards = self._load, np.zeros(len(played.number))
        server, place = np.nonzero(played.finished)
        met = within(load.requests, load.settings.latency)
        np.add.at(rewards, server, met[server, played.number[server, place]])
        return rewards / load.settings.requests
