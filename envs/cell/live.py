"""Texts that are being written: one session per place of a cell, whatever the cell makes of it.

    device: drafter proposes  ->  server: one ragged pass for all who are there  ->  sessions commit

A cell (`draftgym.envs.cell.cell.Cell`) over this table is live decoding of many users: devices
draft for real, the target verifies for real, and nothing is known of a text beforehand. Time stays
the cell's: that of its radio, devices and server. What the passes really took here is kept beside
it.

Unlike traces, a table of sessions belongs to one `Cell`: places are those of its arrays `[n, K]`.
Each cell of n has passes of its own. Users that are served in turn share a pass all the same: what
they are given is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import Repeats, text_signals
from draftgym.decoding.round import Draft, draft, verify_drafts
from draftgym.decoding.session import Session
from draftgym.envs.cell.texts import Ints, Mask, TextTable
from draftgym.rollouts.decode.batched import Request

GUESS = 0.5
"""Mean acceptance of a task of which nothing was measured; a cell's settings can tell better."""

Place = tuple[int, int]


@dataclass
class Reading:
    """A user at its text.

    Attributes:
        text: Index of the text.
        session: Where it is written.
        repeats: What of it has been there before.
        draft: What the device drafted last.
    """

    text: int
    session: Session
    repeats: Repeats = field(default_factory=Repeats)
    draft: Draft | None = None

    @property
    def position(self) -> int:
        """Index of the newest new token."""
        return len(self.session.new_tokens) - 1

    def signals(self) -> NDArray[np.float32]:
        """`TEXT_SIGNALS` of the newest token `[4]`."""
        repeats = self.repeats.extend(self.session.token_ids[len(self.repeats) :])
        confidence = to_host(self.session.confidence()).numpy()
        return np.asarray(text_signals(confidence, repeats[-1:])[0])


@dataclass(frozen=True)
class Pass:
    """A pass of the target.

    Attributes:
        contexts: Cached positions of each user in it.
        drafted: Drafted tokens of each; the pass has one row more of each.
        seconds: What it took on this host, verdicts included.
        draft_seconds: What drafting took on this host, of each.
    """

    contexts: tuple[int, ...]
    drafted: tuple[int, ...]
    seconds: float
    draft_seconds: tuple[float, ...]

    @property
    def rows(self) -> int:
        """Rows of the pass."""
        return sum(self.drafted) + len(self.drafted)


class LiveTable(TextTable):
    """Texts of some prompts, written while a cell plays them.

    Every prompt goes through the target once, and users that read it begin with what that left: its
    cache is kept. Rows `limit * text` and on are those of a text, whatever its length will be.

    Args:
        target: The target.
        drafters: Drafters by name.
        arms: Chains that devices draft with, at most one per drafter.
        requests: The prompts.
        max_new_tokens: Tokens of a text at most, 2 or more.

    Attributes:
        requests: Prompts whose text has more than one token; the others have no round.
        readings: Who is at a text, or was there last, by place.
        written: Finished texts in order, each with the index of its request.
        passes: What the target did, in order.

    Raises:
        DraftgymError: No prompt has a round, or a text may have only one token.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[str, Drafter],
        arms: Sequence[Arm],
        requests: Sequence[Request],
        max_new_tokens: int,
    ) -> None:
        self._target = target
        self._drafters = {arm.drafter: drafters[arm.drafter] for arm in arms}
        begun = [(one, self._prefilled(one)) for one in requests]
        begun = [(one, session) for one, session in begun if session.finish_reason != "stop"]
        if not begun or max_new_tokens < 2:
            raise DraftgymError(
                "no text of these prompts has a round to play",
                "give prompts that the target answers at length, and 2 new tokens or more",
            )
        self.requests = [one for one, _ in begun]
        self._begun = [Reading(text, session) for text, (_, session) in enumerate(begun)]
        super().__init__(
            arms,
            [one.category for one in self.requests],
            [len(one.prompt) for one in self.requests],
            [max_new_tokens] * len(begun),
            max_new_tokens,
        )
        self.signals = np.zeros((max_new_tokens * len(begun), 4), np.float32)
        for first, reading in zip(self.first, self._begun, strict=True):
            self.signals[first] = reading.signals()
        self.readings: dict[Place, Reading] = {}
        self.written: list[tuple[int, list[int]]] = []
        self.passes: list[Pass] = []

    def drafted(self, arm: Ints, row: Ints, lengths: Ints, where: Mask | None = None) -> Ints:
        """Lets devices draft; see `TextTable.drafted`. They wait until they are verified."""
        found = np.zeros(row.shape, np.int64)
        for place in _places(row, where):
            reading = self._reading(place, int(row[place]))
            drafter = self.arms[int(arm[place])].drafter
            reading.draft = draft(reading.session, Arm(drafter, int(lengths[place])))
            found[place] = len(reading.draft.proposal)
        return found

    def confidence(self, arm: Ints, row: Ints, where: Mask) -> NDArray[np.float32]:
        """Lets devices draft a token and tell how sure they are; see `TextFacts.confidence`."""
        told = np.zeros(row.shape, np.float32)
        for place in _places(row, where):
            session = self._reading(place, int(row[place])).session
            first = draft(session, Arm(self.arms[int(arm[place])].drafter, 1)).proposal
            if len(first):
                told[place] = to_host(first.logprobs[0]).exp()
        return told

    def committed(self, arm: Ints, row: Ints, drafted: Ints, where: Mask | None = None) -> Ints:
        """Verifies drafts, in one pass for each cell; see `TextTable.committed`.

        Where `drafted` says less than was drafted, the rest did not arrive.
        """
        counts = np.zeros(row.shape, np.int64)
        places = _places(row, where)
        for cell in dict.fromkeys(place[0] for place in places):
            mine = [place for place in places if place[0] == cell]
            tokens = self._verify(mine, [int(drafted[place]) for place in mine])
            for place, count in zip(mine, tokens, strict=True):
                counts[place] = count
                self.signals[row[place] + count] = self.readings[place].signals()
        return counts

    def ended(self, text: Ints, row: Ints) -> Mask:
        """Whose text ends with this row: whose session has finished there."""
        ends = np.zeros(row.shape, bool)
        for place, reading in self.readings.items():
            ends[place] = reading.session.finished and self._row(reading) == row[place]
        return ends

    @property
    def unfinished(self) -> list[tuple[int, list[int]]]:
        """Texts under way, each with the index of its request, as far as they are written."""
        running = [one for one in self.readings.values() if not one.session.finished]
        return [(one.text, one.session.new_tokens) for one in running]

    def text_acceptance(self) -> NDArray[np.float64]:
        """A guess: what a text accepts is known when it is written `[A, texts]`."""
        return np.full((len(self.arms), len(self.requests)), GUESS)

    def task_acceptance(self) -> NDArray[np.float64]:
        """A guess as well `[A * C]`."""
        return np.full(len(self.task_names), GUESS)

    def _prefilled(self, request: Request) -> Session:
        """A session behind its prompt's pass, with no room for more."""
        session = Session(
            self._target, request.prompt, request.rule(self._target), 1, self._drafters
        )
        session.prefill()
        return session

    def _row(self, reading: Reading) -> int:
        return int(self.first[reading.text]) + reading.position

    def _reading(self, place: Place, row: int) -> Reading:
        """Who is at this row in this place; a text's first row begins it."""
        reading = self.readings.get(place)
        if reading is not None and self._row(reading) == row:
            return reading
        text, position = divmod(row, self.limit)
        if position:
            raise ValueError(f"nobody has written text {text} up to token {position} in {place}")
        begun, request = self._begun[text], self.requests[text]
        rule = request.rule(self._target)
        session = Session(self._target, request.prompt, rule, self.limit, self._drafters)
        session.start_like(begun.session)
        self.readings[place] = Reading(text, session, deepcopy(begun.repeats))
        return self.readings[place]

    def _verify(self, places: Sequence[Place], arrived: Sequence[int]) -> list[int]:
        """One pass; how many tokens it commits in each place."""
        readings = [self.readings[place] for place in places]
        drafts = [_arrived(*one) for one in zip(readings, arrived, strict=True)]
        records = verify_drafts([reading.session for reading in readings], drafts)
        for reading in readings:
            reading.draft = None
            if reading.session.finished:
                self.written.append((reading.text, reading.session.new_tokens))
        self.passes.append(
            Pass(
                tuple(record.context for record in records),
                tuple(len(record.drafted) for record in records),
                records[0].times.verify,
                tuple(record.times.draft + record.times.catch_up for record in records),
            )
        )
        return [len(record.committed) for record in records]


def _places(row: Ints, where: Mask | None) -> list[Place]:
    """Indices `(cell, place)` of those that are meant."""
    mask = np.ones(row.shape, bool) if where is None else where
    return [(cell, place) for cell, place in np.argwhere(mask).tolist()]


def _arrived(reading: Reading, count: int) -> Draft:
    """What the server has of a draft: all of it, or nothing where it came too late."""
    made = reading.draft
    if made is None or count not in (0, len(made.proposal)):
        raise ValueError(f"a draft that was not made: {count} tokens of text {reading.text}")
    return made if count else Draft(made.arm)
