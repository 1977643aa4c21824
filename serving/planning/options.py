"""What a round with each arm would do to a text, as far as that is known before it drafts.

Lookups have been asked by then, so what they copy is known; a network drafts as many tokens as it
is asked for. That is what the environment tells of traced rounds, but for what parts of a graft
have in common, which is counted twice, and trees at the end of a text, which may be smaller.

Notation: A = arms, D = drafters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from draftgym.decoding.arms import Arm, Asking, Graft
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.observers.observation import drafter_names
from draftgym.decoding.round import draft
from draftgym.decoding.session import Session
from draftgym.decoding.verify.proposal import Proposal
from draftgym.policies.serving.servers import Floats, RowFacts

MOST_KNOWN = 4096
"""Situations that are kept; when they are full, all are forgotten."""


@dataclass(frozen=True)
class Looked:
    """What a drafter that looks up found.

    Attributes:
        drafted: Tokens.
        depth: Those on the longest path.
        match: Newest tokens of the text that agree.
        proposal: The tokens themselves; None of drafters that look nothing up.
    """

    drafted: int
    depth: int
    match: int
    proposal: Proposal | None = field(default=None, compare=False)


Situation = tuple[int, tuple[Looked, ...]]
"""Most tokens on a path, and what each part that looks up found: all that rounds depend on."""


class ArmOptions:
    """What rounds with some arms would do.

    Args:
        arms: The arms.
        model: What drafts of one text cost; None where texts draft together.

    Attributes:
        arms: The arms.
        drafters: Their drafters.
        lookups: Those of them that are asked for every text in every round: they draft chains.
    """

    def __init__(self, arms: Sequence[Arm], model: CostModel | None = None) -> None:
        self.arms, self.drafters = tuple(arms), tuple(drafter_names(arms))
        parts = [part.whole for arm in arms for part in arm.parts if part.drafter in LOOKUPS]
        self._parts = tuple(dict.fromkeys(parts))
        self._longest = {  # a chain of each, as in `draftgym.envs.load.texts`
            part.drafter: part
            for part in sorted(self._parts, key=lambda part: part.length)
            if part.nodes is None
        }
        self.lookups = tuple(name for name in self.drafters if name in self._longest)
        self._most, self._model = max((arm.length for arm in arms), default=0), model
        self._known: dict[Situation, tuple[RowFacts, Floats]] = {}

    def look(self, session: Session) -> Situation:
        """Asks those who look up."""
        found = {name: _asked(session, part) for name, part in self._longest.items()}
        looked = [self._found_by(session, part, found) for part in self._parts]
        return min(session.remaining - 1, self._most), tuple(looked)

    def _found_by(self, session: Session, part: Arm, found: Mapping[str, Looked]) -> Looked:
        """What a part finds, given what the longest chains did: a shorter one is its beginning."""
        longest = found.get(part.drafter)
        if longest is None or part.nodes is not None:
            return _asked(session, part)
        length = min(part.length, longest.drafted)
        return Looked(length, length, longest.match, longest.proposal)

    def found(self, situation: Situation) -> list[Looked]:
        """What the longest chain of each lookup found."""
        return [situation[1][self._parts.index(self._longest[name])] for name in self.lookups]

    def facts(self, situation: Situation) -> tuple[RowFacts, Floats]:
        """What a round with each arm would do `[A]`, and seconds of drafting by the model `[A]`."""
        if situation not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[situation] = self._reckon(situation)
        return self._known[situation]

    def _reckon(self, situation: Situation) -> tuple[RowFacts, Floats]:
        told = RowFacts.nothing((len(self.arms),), len(self.drafters))
        told.committed[:] = 1
        told.asked[:] = [name in self.lookups for name in self.drafters]
        alone = np.zeros(len(self.arms))
        for index, arm in enumerate(self.arms):
            graft, names = isinstance(arm, Graft), set()
            for part, made, kept in self._ask(arm, situation):
                column = self.drafters.index(part.drafter)
                names.add(part.drafter)
                told.asked[index, column] = True
                told.verified[index] &= graft
                told.verified[index, column] = True
                told.steps[index, column] = made.depth
                rows = part.nodes if part.nodes and made.depth else made.drafted
                told.tokens[index, column] = rows
                told.drafted[index] += kept
                alone[index] += self._seconds(part, made)
            for name, looked in zip(self.lookups, self.found(situation), strict=True):
                if name not in names:
                    alone[index] += self._seconds(self._longest[name], looked)
        return told, alone

    def _ask(self, arm: Arm, situation: Situation) -> Iterator[tuple[Arm, Looked, int]]:
        """The parts that are asked, with what they draft and how much of it is verified."""
        room, looked = situation
        for part in arm.parts:
            if part.drafter in LOOKUPS:
                made = looked[self._parts.index(part.whole)]
            else:
                depth = max(0, min(part.length, room))
                made = Looked(part.nodes or depth if depth else 0, depth, 0)
            kept = made.drafted if made.match >= part.least else 0
            yield part, made, kept
            if kept and not isinstance(arm, Graft):
                return

    def _seconds(self, part: Arm, made: Looked) -> float:
        if self._model is None:
            return 0.0
        return self._model.draft_seconds(Asking(part, made.drafted, made.depth))


def _asked(session: Session, part: Arm) -> Looked:
    made = draft(session, part)
    (asked,) = made.asked
    return Looked(asked.drafted, asked.depth, made.proposal.match, made.proposal)
