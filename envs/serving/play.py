"""Playing whole episodes of servers by a rule, and what users and operator get of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.load import Load, ServedRound
from draftgym.envs.load.requests import Floats, Ints
from draftgym.envs.serving.reward import within
from draftgym.policies.serving.rule import Batch, Outcome, ServingRule


class Player(Protocol):
    """Who chooses the arms of servers' rounds."""

    def choose(self, load: Load) -> Ints:
        """Arms of the next round `[n, K]`."""

    def learn(self, played: ServedRound) -> None:
        """Takes a round in."""


@dataclass(frozen=True)
class Served:
    """What came of an episode of each of n servers.

    Attributes:
        tokens: Tokens written `[n]`.
        seconds: Time that rounds took `[n]`.
        idle: Time in which nobody was there `[n]`.
        played: Rounds of requests by arm `[A]`, of all servers.
        first_token_seconds, token_seconds: Of every request `[n, N]`.
        attained: Share of requests within their latency objective `[n]`.
    """

    tokens: Floats
    seconds: Floats
    idle: Floats
    played: Ints
    first_token_seconds: Floats
    token_seconds: Floats
    attained: Floats

    @property
    def goodput(self) -> float:
        """Tokens per busy second, of all servers together."""
        return float(self.tokens.sum() / self.seconds.sum())


def play(load: Load, player: Player, seeds: Sequence[int]) -> Served:
    """Plays an episode of every server to its end.

    Args:
        load: The servers, n.
        player: Who chooses.
        seeds: One for each server: what arrives, and when.

    Raises:
        DraftgymError: Not so many seeds.
    """
    if len(seeds) != load.count:
        raise DraftgymError(f"{len(seeds)} seeds for {load.count} servers", "give one for each")
    load.reset([np.random.default_rng(seed) for seed in seeds])
    tokens, seconds, idle = np.zeros((3, load.count))
    played = np.zeros(len(load.texts.arms), np.int64)
    while not load.done.all():
        one = load.step(player.choose(load))
        player.learn(one)
        tokens += one.committed.sum(-1)
        seconds += one.seconds
        idle += one.idle
        played += np.bincount(one.arms[one.deciding], minlength=len(played))
    requests = load.requests
    return Served(
        tokens,
        seconds,
        idle,
        load.settings.copies * played,
        requests.first_token_seconds,
        requests.token_seconds,
        within(requests, load.settings.latency).mean(-1),
    )


class RulePlayer:
    """Plays a rule, which knows arms of its own.

    Args:
        rule: The rule; it forgets what it knew.
        load: The servers.

    Raises:
        DraftgymError: The rule has an arm that the servers lack.
    """

    def __init__(self, rule: ServingRule, load: Load) -> None:
        known = {str(arm): index for index, arm in enumerate(load.texts.arms)}
        for arm in rule.arms:
            if str(arm) not in known:
                raise DraftgymError(
                    f"the servers have no arm {str(arm)!r}", f"they have {', '.join(known)}"
                )
        self._index = np.array([known[str(arm)] for arm in rule.arms])
        self._rule, self._copies = rule, load.settings.copies
        rule.begin(load.count)

    def choose(self, load: Load) -> Ints:
        """See `Player`."""
        deciding = load.deciding
        cached = self._copies * (load.context * deciding).sum(-1)
        self._batch = Batch(deciding, cached, self._copies)
        self._arms = self._rule.choose(self._batch)
        return np.asarray(self._index[self._arms])

    def learn(self, played: ServedRound) -> None:
        """See `Player`."""
        accepted = np.where(played.deciding, played.committed // self._copies - 1, 0)
        outcome = Outcome(played.drafted, accepted, played.verified)
        self._rule.learn(self._batch, self._arms, outcome)
