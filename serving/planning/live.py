"""A running batch, as policies for batches see it (`draftgym.policies.serving.servers`): n = 1.

A place is a text that is being written. Those whose prompts are still being read, and the queue,
are not told to who chooses; forecasts read nothing of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.decoding.observers.observation import RouterObserver, observe_together
from draftgym.decoding.round import RoundRecord
from draftgym.decoding.session import Session
from draftgym.policies.serving.memory import EACH, AcceptanceMemory
from draftgym.policies.serving.observation import LOOKED, found_by
from draftgym.policies.serving.servers import Floats, Ints, Mask, RowFacts, seconds_of
from draftgym.rollouts.replay.pricing import backlogs
from draftgym.serving.batching.choosing import Writing
from draftgym.serving.planning.options import ArmOptions, Looked


class Followed:
    """What is remembered of one text.

    What drafters know of a beginning that was read for another text is not counted: they are taken
    to have missed it.

    Args:
        session: Where it is written.
        options: The arms.
    """

    def __init__(self, session: Session, options: ArmOptions) -> None:
        self._options = options
        self.observer = RouterObserver(options.arms)
        self.accepted = AcceptanceMemory(len(options.drafters))
        self.last_used = np.array([session.drafters[name].lag - 1 for name in options.drafters])

    def update(self, action: int | None, record: RoundRecord) -> None:
        """Takes in a round.

        Args:
            action: The arm that stands for what was played; None where there is none.
            record: What happened.
        """
        asked = self._marks([*(one.arm.drafter for one in record.asked), *self._options.lookups])
        known = len(self._options.arms) if action is None else action
        facts = (np.array([fact]) for fact in (known, len(record.committed), record.context))
        chosen, committed, context = facts
        verified = self._marks(record.drafters)
        self.observer.memory.update(chosen, committed, context, asked, verified)
        self.last_used[asked[0]] = record.context
        depths = {one.arm.drafter: one.depth for one in record.asked}
        depth = np.array([[depths.get(name, 0) for name in self._options.drafters]])
        self.accepted.update(committed, depth, verified)

    def _marks(self, names: Collection[str]) -> Mask:
        """Which drafters these are `[1, D]`."""
        return np.array([[name in names for name in self._options.drafters]])


class LiveBatch:
    """The batch before a round.

    Args:
        options: The arms.
        costs: What rounds cost.
        texts: Those that are verified in the pass, one at least; K.
        followed: What is remembered of those that decide, by their places; of the others a row
            is verified.
        now: Seconds, by the batch's clock.

    Attributes:
        costs: What rounds cost.
        shape: 1 and K.
        context: Positions in the target's cache `[1, K]`.
        deciding: Whose arms the next round reads `[1, K]`.
        alone: Seconds of drafting with each arm, by the cost model `[1, K, A]`.
        found: What lookups found `[1, K, 6 L]`.
        ids: Token ids that a forecast reads `[1, K, 2 + L]`.
    """

    def __init__(
        self,
        options: ArmOptions,
        costs: ServerCosts,
        texts: Sequence[Writing],
        followed: Mapping[int, Followed],
        now: float,
    ) -> None:
        self._of, self.costs, self._texts = options, costs, list(texts)
        self._followed, self._now = dict(followed), now
        self.shape = 1, len(texts)
        self._sessions = [text.session for text in texts]
        self.context = np.array([[session.cache.length for session in self._sessions]])
        self.deciding = np.array([[place in followed for place in range(len(texts))]], np.bool_)
        self._missed = self._backlogs()
        self._look()

    def _backlogs(self) -> Ints:
        """Positions that each drafter has missed `[1, K, D]`."""
        last_used = np.zeros((*self.shape, len(self.drafters)), np.int64)
        for place, followed in self._followed.items():
            last_used[0, place] = followed.last_used
        remaining = np.array([[[session.remaining] for session in self._sessions]], np.int64)
        return backlogs(self.context[..., None], last_used, remaining.reshape(*self.shape, 1))

    def _look(self) -> None:
        """Asks the lookups of all who decide."""
        each = *self.shape, len(self.arms)
        self._options = RowFacts.nothing(each, len(self.drafters))
        self.alone = np.zeros(each)
        self.found = np.zeros((*self.shape, len(LOOKED) * len(self.lookups)), np.float32)
        self.ids = np.full((*self.shape, 2 + len(self.lookups)), -1)
        for place in self._followed:
            situation = self._of.look(self._sessions[place])
            facts, self.alone[0, place] = self._of.facts(situation)
            for name, value in vars(facts).items():
                getattr(self._options, name)[0, place] = value
            looked = self._of.found(situation)
            self.found[0, place] = np.ravel([_told(one) for one in looked])
            self.ids[0, place] = _ids(self._sessions[place], looked)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms."""
        return self._of.arms

    @property
    def drafters(self) -> tuple[str, ...]:
        """Their drafters."""
        return self._of.drafters

    @property
    def lookups(self) -> tuple[str, ...]:
        """Those that were asked."""
        return self._of.lookups

    @property
    def copies(self) -> int:
        """1."""
        return 1

    @property
    def active(self) -> Mask:
        """All places are taken `[1, K]`."""
        return np.ones(self.shape, np.bool_)

    @property
    def unread(self) -> Ints:
        """Nothing `[1, K]`."""
        return np.zeros(self.shape, np.int64)

    @property
    def waiting(self) -> Ints:
        """Nobody is told of `[1]`."""
        return np.zeros(1, np.int64)

    @property
    def waited(self) -> Floats:
        """Seconds since each was submitted `[1, K]`."""
        return np.array([[self._now - text.submitted for text in self._texts]])

    @property
    def pace(self) -> Floats:
        """Mean seconds between its tokens so far `[1, K]`; 0 before the second."""
        since = self.waited - [[text.statistics.first_token_seconds for text in self._texts]]
        written = np.array([[len(session.new_tokens) - 1 for session in self._sessions]])
        return np.where(written > 0, since / np.maximum(written, 1), 0.0)

    @property
    def signals(self) -> NDArray[np.float32]:
        """What a router would see of those who decide `[1, K, s]`."""
        places = list(self._followed)
        observers = [self._followed[place].observer for place in places]
        seen = observe_together(observers, [self._sessions[place] for place in places])["signals"]
        told = np.zeros((*self.shape, seen.shape[1]), np.float32)
        told[0, places] = seen
        return told

    @property
    def acceptance(self) -> NDArray[np.float32]:
        """What drafts of those who decide came to `[1, K, 6 D]`."""
        told = np.zeros((*self.shape, len(EACH) * len(self.drafters)), np.float32)
        for place, followed in self._followed.items():
            told[0, place] = followed.accepted.numbers()[0]
        return told

    def options(self) -> RowFacts:
        """What a round with each arm would do, `[1, K, A]`."""
        return self._options

    def missed(self, asked: Mask) -> Ints:
        """Positions that drafters encode first, `[1, K, ..., D]` like `asked`."""
        axes = tuple(range(2, asked.ndim - 1))
        return np.asarray(np.expand_dims(self._missed, axes) * asked)

    def round_seconds(self, arms: Ints, caught_up: bool = False) -> Floats:
        """What a round would take by the costs `[1]`, without prompts that ride along."""
        alone = np.take_along_axis(self.alone, arms[..., None], -1)[..., 0] * self.deciding
        facts = self._options.at(arms).where(self.deciding)
        rows = (facts.drafted + 1).sum(-1)
        draft, verify = seconds_of(self, facts, alone, self.active, rows, caught_up)
        return draft + verify


def _told(one: Looked) -> Floats:
    """What is told of a lookup."""
    assert one.proposal is not None  # it was asked
    return found_by(one.match, one.drafted, one.proposal.logprobs.numpy().astype(np.float64))


def _ids(session: Session, looked: Sequence[Looked]) -> list[int]:
    """`Servers.ids` of a text."""
    written = [-1, *session.new_tokens[-2:]]
    firsts = [one.proposal.token_ids[:1] if one.proposal else [] for one in looked]
    return [written[-1], written[-2], *(first[0] if first else -1 for first in firsts)]
