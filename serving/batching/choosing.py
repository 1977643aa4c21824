"""Who chooses the arms of a round, with the whole batch in view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from draftgym.decoding.arms import Arm
from draftgym.decoding.round import RoundRecord
from draftgym.decoding.session import Session
from draftgym.serving.batching.requests import TextRequest, TextStatistics


@dataclass(eq=False)
class Writing:
    """A text of the batch that is being written: its prompt has been read.

    Attributes:
        request: What was asked for.
        session: Where it is written.
        statistics: How it came about so far.
        memory: What its policy remembers of it, as the policy likes.
        submitted: When it was submitted, by the batch's clock.
    """

    request: TextRequest
    session: Session
    statistics: TextStatistics
    memory: dict[str, Any] = field(default_factory=dict)
    submitted: float = 0.0


class BatchPolicy(Protocol):
    """Chooses the arms of texts that are verified in one pass.

    Attributes:
        name: How requests and tables call it.
        arms: What it chooses from.
    """

    name: str

    @property
    def arms(self) -> Sequence[Arm]:
        """What it chooses from."""

    def choose(self, mine: Sequence[Writing], batch: Sequence[Writing]) -> list[Arm]:
        """The arm of each of its texts in the next round.

        Args:
            mine: Texts that it decides for, one at least.
            batch: All that are verified in the pass, those of other policies included.
        """

    def learn(self, text: Writing, arm: Arm, record: RoundRecord) -> None:
        """Takes in what a round of one of its texts did.

        Args:
            text: The text.
            arm: What it chose; what was drafted may be less (`record.arm`), where the request or
                the guard allowed less.
            record: What happened.
        """


def standing_for(arms: Sequence[Arm], chosen: Arm, played: Arm) -> int | None:
    """The index of the arm that stands for what was played, as policies remember it.

    Where that is none of the arms (a draft that was cut, or prompt lookup before `>`), it is the
    arm of the same drafter that is nearest in length; None where there is none either.

    Args:
        arms: Those of the policy.
        chosen: What it chose.
        played: What was drafted with.
    """
    if played in arms:
        return list(arms).index(played)
    if not played.drafts:
        return None
    same = [at for at, arm in enumerate(arms) if arm.drafter == played.drafter]
    distances = {at: abs(arms[at].length - played.length) for at in same}
    return min(same, key=lambda at: (arms[at] != chosen, distances[at]), default=None)
