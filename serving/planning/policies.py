"""Policies for batches, playing one: rules, and forecasts whose batches are planned.

Both are told of a round once all of its texts have been: before the next one. Rounds that the
server keeps plain were not chosen, and say nothing of their choices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.decoding.observers.observation import drafter_names
from draftgym.decoding.round import RoundRecord
from draftgym.policies.serving.planned import Forecast, PlannedPlayer
from draftgym.policies.serving.rule import Batch, Ints, Outcome, ServingRule
from draftgym.policies.serving.servers import Floats, Mask
from draftgym.serving.batching.choosing import Writing, standing_for
from draftgym.serving.planning.live import Followed, LiveBatch
from draftgym.serving.planning.options import ArmOptions

FOLLOWED = "followed"
"""Under which a text's memory holds what a forecast remembers of it."""


class _Reports:
    """What became of the texts of a round.

    Args:
        mine: The texts that were chosen for, by their places in the batch.
    """

    def __init__(self, mine: dict[int, Writing]) -> None:
        self._place = {id(text): place for place, text in mine.items()}
        self.records: dict[int, RoundRecord] = {}

    def tell(self, text: Writing, record: RoundRecord) -> None:
        """Takes in a text's round; of later ones, which were not chosen, nothing."""
        place = self._place.pop(id(text), None)
        if place is not None:
            self.records[place] = record


class RuleForBatch:
    """A rule, which goes by the size of the batch and by what its rounds did.

    All texts that are verified together count, those of other policies as well.

    Args:
        rule: The rule.
    """

    def __init__(self, rule: ServingRule) -> None:
        self.rule, self.name, self.arms = rule, rule.name, rule.arms
        self._drafters = drafter_names(rule.arms)
        self._last: tuple[Batch, Ints, _Reports] | None = None
        rule.begin(1)

    def choose(self, mine: Sequence[Writing], batch: Sequence[Writing]) -> list[Arm]:
        """See `BatchPolicy`."""
        self._learn()
        places = _places(mine, batch)
        cached = np.array([sum(text.session.cache.length for text in batch)])
        told = Batch(np.ones((1, len(batch)), np.bool_), cached)
        arms = self.rule.choose(told)
        self._last = told, arms, _Reports(places)
        return [self.arms[arms[0, place]] for place in places]

    def learn(self, text: Writing, arm: Arm, record: RoundRecord) -> None:
        """See `BatchPolicy`."""
        if self._last is not None:
            self._last[2].tell(text, record)

    def _learn(self) -> None:
        """Tells the rule of the last round that it chose for."""
        if self._last is None:
            return
        batch, arms, reports = self._last
        drafted, accepted = np.zeros((2, *batch.deciding.shape), np.int64)
        verified = np.zeros((*batch.deciding.shape, len(self._drafters)), np.bool_)
        for place, record in reports.records.items():
            drafted[0, place] = len(record.drafted)
            accepted[0, place] = len(record.committed) - 1
            verified[0, place] = [name in record.drafters for name in self._drafters]
        self.rule.learn(batch, arms, Outcome(drafted, accepted, verified))


@dataclass(frozen=True)
class _Played:
    """A round that was planned, as prices go by it: its seconds are those of the costs."""

    deciding: Mask
    seconds: Floats
    reports: _Reports
    read: Ints = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", np.zeros(self.deciding.shape, np.int64))

    @property
    def committed(self) -> Ints:
        """Tokens that each text got `[1, K]`."""
        tokens = np.zeros(self.deciding.shape, np.int64)
        for place, record in self.reports.records.items():
            tokens[0, place] = len(record.committed)
        return tokens


class PlannedForBatch:
    """A forecast, and the batch planned with it at this host's costs.

    The price of time is kept in seconds of the costs as well, so that it does not matter by how
    much the host is faster or slower than they say, as long as it is so alike.

    Args:
        name: How requests call it.
        forecast: Says what arms should commit.
        costs: What rounds cost with some drafters.
        clock: Seconds; the batch's.
    """

    def __init__(
        self,
        name: str,
        forecast: Forecast,
        costs: ServerCosts,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name, self.arms, self.costs, self._clock = name, forecast.arms, costs, clock
        self._options = ArmOptions(forecast.arms, costs.model)
        nobody = LiveBatch(self._options, costs, [], {}, 0.0)
        self._player = PlannedPlayer(forecast, nobody)
        self._last: _Played | None = None

    def choose(self, mine: Sequence[Writing], batch: Sequence[Writing]) -> list[Arm]:
        """See `BatchPolicy`."""
        if self._last is not None:
            self._player.learn(self._last)
        places = _places(mine, batch)
        followed = {place: self._followed(text) for place, text in places.items()}
        live = LiveBatch(self._options, self.costs, batch, followed, self._clock())
        arms = self._player.choose(live)
        self._last = _Played(live.deciding, live.round_seconds(arms), _Reports(places))
        return [self.arms[arms[0, place]] for place in places]

    def learn(self, text: Writing, arm: Arm, record: RoundRecord) -> None:
        """See `BatchPolicy`."""
        self._followed(text).update(standing_for(self.arms, arm, record.arm), record)
        if self._last is not None:
            self._last.reports.tell(text, record)

    def _followed(self, text: Writing) -> Followed:
        if FOLLOWED not in text.memory:
            text.memory[FOLLOWED] = Followed(text.session, self._options)
        followed: Followed = text.memory[FOLLOWED]
        return followed


def _places(mine: Sequence[Writing], batch: Sequence[Writing]) -> dict[int, Writing]:
    """A policy's texts, in their order, by their places in the batch."""
    place = {id(text): index for index, text in enumerate(batch)}
    return {place[id(text)]: text for text in mine}
