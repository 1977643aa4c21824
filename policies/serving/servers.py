"""What may be known of servers: of those that replay traces and of one that runs, alike.

Forecasts, planners and observations read servers by this alone. `draftgym.envs.load.load.Load`
plays them from traces; `draftgym serve` follows its own batch. So a policy meets in deployment what
it met in training.

Notation: n = servers, K = places of a batch, A = arms, D = drafters, L = drafters that look up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.server_costs import BatchDrafts, ServerCosts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RowFacts:
    """What rounds do, for any shape S of texts and arms.

    Attributes:
        committed: Tokens that they commit, S; 1 where that is not known beforehand.
        drafted: Tokens that they verify, S.
        asked: Which drafters they ask, S and `[D]`.
        verified: Whose proposals they verify, the same.
        steps: Levels that each drafts, the same.
        tokens: Rows that each drafts, the same.
    """

    committed: Ints
    drafted: Ints
    asked: Mask
    verified: Mask
    steps: Ints
    tokens: Ints

    @classmethod
    def nothing(cls, shape: tuple[int, ...], drafters: int) -> RowFacts:
        """Facts of a shape S, all 0."""
        each = (*shape, drafters)
        marks, sizes = np.zeros((2, *each), np.bool_), np.zeros((2, *each), np.int64)
        numbers = np.zeros((2, *shape), np.int64)
        return cls(numbers[0], numbers[1], marks[0], marks[1], sizes[0], sizes[1])

    def at(self, arms: Ints) -> RowFacts:
        """Of facts of all arms, S and `[A]`, those of an arm of each text (S)."""

        def taken(value: NDArray[Any]) -> NDArray[Any]:
            which = np.expand_dims(arms, tuple(range(arms.ndim, value.ndim)))
            return np.take_along_axis(value, which, arms.ndim).squeeze(arms.ndim)

        return RowFacts(*(taken(value) for value in vars(self).values()))

    def where(self, mine: Mask) -> RowFacts:
        """The same of some, and nothing of the others (S)."""
        each = mine[..., None]
        return RowFacts(
            self.committed * mine,
            self.drafted * mine,
            self.asked & each,
            self.verified & each,
            self.steps * each,
            self.tokens * each,
        )


class Servers(Protocol):
    """n servers before a round."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms."""

    @property
    def drafters(self) -> tuple[str, ...]:
        """Their drafters."""

    @property
    def lookups(self) -> tuple[str, ...]:
        """Those of them that are asked before anything is chosen."""

    @property
    def costs(self) -> ServerCosts:
        """What rounds cost."""

    @property
    def copies(self) -> int:
        """How many identical requests each stands for."""

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""

    @property
    def active(self) -> Mask:
        """Which places are taken `[n, K]`."""

    @property
    def deciding(self) -> Mask:
        """Whose arms the next round reads `[n, K]`."""

    @property
    def unread(self) -> Ints:
        """Tokens of their prompts that are still to be read `[n, K]`."""

    @property
    def context(self) -> Ints:
        """Positions in the target's cache `[n, K]`; 0 of empty places."""

    @property
    def waiting(self) -> Ints:
        """Requests in the queue `[n]`."""

    @property
    def waited(self) -> Floats:
        """Seconds since each request arrived `[n, K]`."""

    @property
    def pace(self) -> Floats:
        """Mean seconds between its tokens so far `[n, K]`; 0 before the second."""

    @property
    def found(self) -> NDArray[np.float32]:
        """What lookups found `[n, K, 6 L]`: see `policies.serving.observation.found_by`."""

    @property
    def ids(self) -> Ints:
        """Token ids that forecasts read `[n, K, 2 + L]`; -1 where there is none.

        The newest token, the one before it if that was written as well, and the first that each
        lookup found.
        """

    @property
    def acceptance(self) -> NDArray[np.float32]:
        """What drafts of each came to `[n, K, 6 D]` (`policies.serving.memory`)."""

    @property
    def signals(self) -> NDArray[np.float32]:
        """What a router would see of each `[n, K, s]`: `decoding.observers.observation`."""

    @property
    def alone(self) -> Floats:
        """Seconds of drafting by `costs.model` with each arm, without encoding `[n, K, A]`."""

    def options(self) -> RowFacts:
        """What a round with each arm would do in every place, `[n, K, A]`; read who is deciding."""

    def missed(self, asked: Mask) -> Ints:
        """Positions that drafters encode first, `[n, K, ..., D]` like `asked`; 0 where it is not.

        Args:
            asked: Which drafters are asked, of one arm `[n, K, D]` or of several `[n, K, A, D]`.
        """

    def round_seconds(self, arms: Ints, caught_up: bool = False) -> Floats:
        """What a round takes `[n]`.

        Args:
            arms: An arm for each place `[n, K]`; read for those who decide.
            caught_up: As if no drafter had missed anything.
        """


def seconds_of(
    servers: Servers,
    facts: RowFacts,
    alone: Floats,
    taking: Mask,
    rows: Ints,
    caught_up: bool = False,
) -> tuple[Floats, Floats]:
    """Time of drafting and of the pass `[n]` each.

    Args:
        servers: The servers.
        facts: What the chosen arms do `[n, K]`, nothing in places that do not decide.
        alone: Seconds of drafting with these arms `[n, K]`, 0 there as well.
        taking: Who has rows in the pass `[n, K]`.
        rows: How many `[n]`.
        caught_up: As if no drafter had missed anything.
    """
    context, copies, costs = servers.context, servers.copies, servers.costs
    missed = servers.missed(facts.asked) * (not caught_up)
    drafts = BatchDrafts(facts.asked, facts.steps, facts.tokens, missed, context, alone, copies)
    cached = np.where(taking, context, 0).sum(-1)
    batch = (copies * number for number in (taking.sum(-1), rows, cached))
    return costs.draft_seconds(drafts), costs.pass_seconds(*batch)
