"""The texts of connected devices, as cells and schedulers read them.

A place holds one text at a time. Its rows are `limit * place` and on, one per written token, and
are overwritten by the next text: the table never grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import LOOKUPS, DraftShape
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import to_host
from draftgym.decoding.observers.observation import Repeats, text_signals
from draftgym.decoding.session import Session
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.envs.cell.texts import Ints, Mask, TextFacts
from draftgym.policies.multispin.uplink import Floats

GUESS = 0.5
"""Mean acceptance of tasks of which nothing was measured."""
OTHER = "other"
"""Category of texts of which nothing is known."""


class WireTable(TextFacts):
    """A text per place, written by sessions.

    Args:
        places: Places, K.
        arms: Longest chain of each drafter that devices may have.
        means: Mean acceptance of tasks (`category/arm`) as measured beforehand.
        limit: Tokens of a text at most.

    Raises:
        DraftgymError: Arms that are no chains, or two of one drafter.
    """

    def __init__(
        self, places: int, arms: Sequence[Arm], means: Mapping[str, float], limit: int
    ) -> None:
        known = sorted({task.partition("/")[0] for task in means} | {OTHER})
        self._means = means
        super().__init__(arms, [OTHER] * places, [0] * places, [limit] * places, limit)
        self.categories = known
        self.signals = np.zeros((places * limit, 4), np.float32)
        self._sessions: list[Session | None] = [None] * places
        self._repeats = [Repeats() for _ in range(places)]
        self._lookup = NgramDrafter()
        self._indexed: list[Any] = [None] * places

    def arm_of(self, drafter: str) -> int:
        """Index of a drafter's chain.

        Raises:
            DraftgymError: No chain of this drafter is served.
        """
        names = [arm.drafter for arm in self.arms]
        if drafter not in names:
            raise DraftgymError(
                f"no chain of a drafter {drafter!r} is served here", f"use {' or '.join(names)}"
            )
        return names.index(drafter)

    def category_of(self, name: str) -> int:
        """Index of a category; unknown ones are `OTHER`."""
        return self.categories.index(name if name in self.categories else OTHER)

    def begin(self, place: int, session: Session) -> None:
        """A session with its first token takes a place's rows."""
        self._sessions[place], self._repeats[place] = session, Repeats()
        self._indexed[place] = None
        rows = slice(place * self.limit, (place + 1) * self.limit)
        position = np.arange(self.limit)
        self.context[rows] = session.prompt_length + position
        self.remaining[rows] = np.maximum(session.max_new_tokens - 1 - position, 0)
        self.look(place)

    def look(self, place: int) -> None:
        """Keeps how sure the target was of a place's newest token."""
        session, repeats = self._sessions[place], self._repeats[place]
        assert session is not None  # a place is read only while it is taken
        found = repeats.extend(session.token_ids[len(repeats) :])
        signals = text_signals(to_host(session.confidence()).numpy(), found[-1:])[0]
        self.signals[place * self.limit + len(session.new_tokens) - 1] = signals

    def forget(self, place: int) -> None:
        """A place's text is done, or its device has gone."""
        self._sessions[place], self._indexed[place] = None, None

    def text(self, category: Ints, start: Ints, step: Ints, served: Ints) -> Ints:
        """Every place has one text; see `TextFacts.text`."""
        return np.broadcast_to(np.arange(len(self.first)), category.shape)

    def confidence(self, arm: Ints, row: Ints, where: Mask) -> NDArray[np.float32]:
        """What prompt lookup would say, found here: it needs nothing of the device's.

        A network's is not known before its device has drafted; see `TextFacts.confidence`.
        """
        told = np.zeros(row.shape, np.float32)
        for cell, place in np.argwhere(where).tolist():
            session = self._sessions[place]
            if session is not None and self.arms[int(arm[cell, place])].drafter in LOOKUPS:
                told[cell, place] = self._finds(place, session)
        return told

    def _finds(self, place: int, session: Session) -> float:
        if session.remaining < 2:  # the target's own token is the last
            return 0.0
        if self._indexed[place] is None:
            self._indexed[place] = self._lookup.new_state(session.capacity)
        self._lookup.catch_up(self._indexed[place], session)
        return float(len(self._lookup.propose(self._indexed[place], session, DraftShape(1))) > 0)

    def ended(self, text: Ints, row: Ints) -> Mask:
        """Whose session has finished."""
        done = [one is not None and one.finished for one in self._sessions]
        return np.array(done)[text]

    def text_acceptance(self) -> Floats:
        """A guess: what a text accepts is known when it is written `[A, texts]`."""
        return np.full((len(self.arms), len(self.first)), GUESS)

    def task_acceptance(self) -> Floats:
        """What was measured beforehand; else the mean of a drafter's tasks `[A * C]`."""
        found = []
        for arm in self.arms:
            mine = [mean for task, mean in self._means.items() if task.endswith(f"/{arm}")]
            usual = float(np.mean(mine)) if mine else GUESS
            found += [self._means.get(f"{name}/{arm}", usual) for name in self.categories]
        return np.array(found)
