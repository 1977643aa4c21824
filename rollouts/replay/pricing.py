"""What the rounds of traces cost by a cost model, priced once for everything that walks over them.

Only catching up depends on earlier choices, so it is kept apart, as a table over backlogs.

Notation: n = positions of a text, A = arms, D = drafters, L = longest backlog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import PLAIN, Arm, Asking, Graft
from draftgym.decoding.costs.cost_model import CostModel, note_extrapolation, slope_beyond
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.rollouts.traces.joint import asked_of, made_by
from draftgym.rollouts.traces.trace import TextTrace, TraceSet


def contexts(text: TextTrace) -> NDArray[np.int64]:
    """Positions in the target's cache when a round begins at each position `[n]`."""
    return text.prompt_tokens + np.arange(len(text))


def step_seconds(model: CostModel, text: TextTrace) -> NDArray[np.float64]:
    """One target step at each position `[n]`."""
    return np.array([model.step_seconds(int(context)) for context in contexts(text)])


def round_seconds(model: CostModel, text: TextTrace, arm: Arm) -> NDArray[np.float64]:
    """A round with this arm at each position `[n]`, without catching up."""
    rows = 1 + made_by(text, arm).drafted
    return _pass_seconds(model, rows, contexts(text)) + drafting_seconds(model, text, arm)


def drafting_seconds(model: CostModel, text: TextTrace, arm: Arm) -> NDArray[np.float64]:
    """What drafting with this arm takes at each position `[n]`, without catching up."""
    seconds = np.zeros(len(text))
    for part in asked_of(text, arm):
        made, deep = part.drafted, 1 + part.drafted.depth.max(initial=0)
        kinds = made.drafted * deep + made.depth
        costs = np.zeros(kinds.max(initial=0) + 1)
        for kind in _distinct(kinds):  # there are few
            costs[kind] = model.draft_seconds(Asking(part.arm, *divmod(kind, int(deep))))
        seconds += np.where(part.where, costs[kinds], 0.0)
    return seconds


def _pass_seconds(
    model: CostModel, rows: NDArray[np.int64], contexts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """`CostModel.target_seconds` of many passes `[n]`, of which few differ in their rows."""
    known = sorted(model.target_pass)
    beyond = np.maximum(contexts - known[-1], 0)
    seconds = np.empty(len(rows))
    for count in _distinct(rows):
        costs = [model.target_pass[context](count) for context in known]
        every = np.interp(contexts, known, costs) + beyond * slope_beyond(known, costs)
        np.copyto(seconds, every, where=rows == count)
    return seconds


def _distinct(numbers: NDArray[np.int64]) -> list[int]:
    """Which small numbers occur, ascending; without sorting."""
    found: list[int] = np.flatnonzero(np.bincount(numbers)).tolist()
    return found


def worked(
    text: TextTrace, arm: Arm, names: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which drafters rounds with an arm ask, and whose proposals they verify.

    Args:
        text: The text.
        arm: The arm.
        names: The drafters, D.

    Returns:
        Twice `[n, D]`.
    """
    asked = np.zeros((len(text), len(names)), dtype=np.bool_)
    verified = asked.copy()
    for part in asked_of(text, arm):
        column = names.index(part.arm.drafter)
        asked[:, column] = part.where
        if not isinstance(arm, Graft):
            verified[part.where] = False
        verified[:, column] |= part.where
    return asked, verified


def catch_up_table(model: CostModel, drafter: str, longest: int) -> NDArray[np.float64]:
    """Seconds of catching up by backlog, for 0 to `longest` positions."""
    return np.array([model.catch_up[drafter](backlog) for backlog in range(longest + 1)])


def backlogs(
    context: NDArray[np.int64], last_used: NDArray[np.int64], remaining: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Positions that a drafter must encode before it drafts.

    Args:
        context: Positions in the target's cache.
        last_used: The context at which it drafted last; `lag - 1` if it never did.
        remaining: Tokens that may still be written. With one left nothing is drafted.
    """
    return np.where(remaining > 1, context - last_used, 0)


PLAIN_ARM = Arm(PLAIN, 0)
"""The arm that every set may add: leave the round to the target."""


@dataclass(frozen=True, eq=False)
class CatchUps:
    """What catching up costs, for all texts alike.

    Attributes:
        tables: Seconds by drafter and backlog `[D, L + 1]`.
    """

    tables: NDArray[np.float64]

    def most_extra(
        self, drafter: int, backlog: int, others: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """How much dearer a drafter's backlog can be than others, now or later `[K]`.

        Until a drafter is used, its backlog grows by one per position, whoever waits. So this is
        the most, over all s, that `table[backlog + s] - table[other + s]` can be, or 0 where the
        backlog is always cheaper. No table has to be monotone for that.

        Args:
            drafter: Row of `tables`.
            backlog: What one way of choosing has to catch up.
            others: What the other ways have to `[K]`.
        """
        return self._suffixes[drafter].most(backlog, others)

    @cached_property
    def _suffixes(self) -> list[_Suffixes]:
        return [_Suffixes(table) for table in self.tables]


class _Suffixes:
    """What one drafter's backlogs can cost more than others, in memory of the table's order.

    The answer depends on the difference of two backlogs and on the smaller one, as the largest of
    all later values. So one row per difference is enough, worked out when it is asked for; all rows
    of a long text would be the square of it.

    Args:
        table: Seconds by backlog `[L + 1]`.
    """

    ROWS = 128
    """Most rows that are kept; when they are full, all are forgotten."""

    def __init__(self, table: NDArray[np.float64]) -> None:
        self.table, self.free = table, not table.any()
        self.row_of = np.full(2 * len(table) - 1, -1)
        self.rows = np.zeros((self.ROWS, len(table)))
        self.used = 0

    def most(self, backlog: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `CatchUps.most_extra`."""
        if self.free or not len(others):
            return np.zeros(len(others))
        parts = range(0, len(others), self.ROWS)
        return np.concatenate([self._most(backlog, others[i : i + self.ROWS]) for i in parts])

    def _most(self, backlog: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
        shifts = backlog - others + len(self.table) - 1
        lacking = np.unique(shifts[self.row_of[shifts] < 0])
        if self.used + len(lacking) > self.ROWS:
            self.row_of[:], self.used = -1, 0
            lacking = np.unique(shifts)
        for shift in lacking.tolist():
            self._work_out(shift)
        extra: NDArray[np.float64] = self.rows[self.row_of[shifts], others]
        return extra

    def _work_out(self, shift: int) -> None:
        ahead = shift - (len(self.table) - 1)
        start, stop = max(0, -ahead), len(self.table) - max(0, ahead)
        dearer = self.table[start + ahead : stop + ahead] - self.table[start:stop]
        largest = np.maximum.accumulate(dearer[::-1])[::-1]
        self.rows[self.used, start:stop] = np.maximum(largest, 0)
        self.row_of[shift] = self.used
        self.used += 1


@dataclass(frozen=True, eq=False)
class PricedText:
    """The rounds of one text.

    Attributes:
        question_id: Which prompt.
        category: Its category.
        arms: What there is to choose from, A.
        committed: Tokens that a round commits `[n, A]`.
        seconds: What it costs without catching up `[n, A]`.
        contexts: Positions in the target's cache when it begins `[n]`.
        remaining: Tokens that may still be written then `[n]`.
        asked: Which drafters each arm asks, and so catches up `[n, A, D]`.
        never: What "used last" says of drafters that never were `[D]`.
        catch_ups: Costs of catching up, shared by all texts.
    """

    question_id: str
    category: str
    arms: tuple[Arm, ...]
    committed: NDArray[np.int64]
    seconds: NDArray[np.float64]
    contexts: NDArray[np.int64]
    remaining: NDArray[np.int64]
    asked: NDArray[np.bool_]
    never: NDArray[np.int64]
    catch_ups: CatchUps

    def __len__(self) -> int:
        """Positions at which a round can begin."""
        return len(self.committed)

    def round_seconds(self, position: int, last_used: NDArray[np.int64]) -> NDArray[np.float64]:
        """What a round with each arm costs, catching up included.

        Args:
            position: Where it begins.
            last_used: Contexts at which the drafters worked last `[.., D]`.

        Returns:
            Seconds `[.., A]`.
        """
        waited = backlogs(self.contexts[position], last_used, self.remaining[position])
        tables = self.catch_ups.tables
        each = tables[np.arange(len(tables)), waited]  # [.., D]
        seconds: NDArray[np.float64] = self.seconds[position] + each @ self.asked[position].T
        return seconds

    def only(self, arms: Sequence[Arm]) -> PricedText:
        """The same text with fewer arms to choose from."""
        columns = [self.arms.index(arm) for arm in arms]
        return replace(
            self,
            arms=tuple(arms),
            committed=self.committed[:, columns],
            seconds=self.seconds[:, columns],
            asked=self.asked[:, columns],
        )


def price_traces(
    traces: TraceSet, arms: Sequence[Arm], model: CostModel | None = None
) -> list[PricedText]:
    """Prices the rounds of all texts.

    Args:
        traces: The texts.
        arms: What may be chosen; `plain` is always known.
        model: Costs; by default those of the host that collected the traces.

    Raises:
        DraftgymError: An arm that was not traced, or that the model knows no costs of.
    """
    traces.check_arms(arms)
    model = model or traces.origin.cost_model
    names = drafter_names(arms)
    check_costs(model, names)
    longest = max((text.prompt_tokens + len(text) for text in traces.texts), default=0)
    note_extrapolation(model, longest)
    tables = [catch_up_table(model, name, longest) for name in names]
    lags = np.array([traces.origin.lags[name] for name in names], dtype=np.int64)
    shared = lags - 1, CatchUps(np.array(tables).reshape(len(names), longest + 1))
    return [
        PricedText(
            text.question_id,
            text.category,
            tuple(arms),
            np.column_stack([made_by(text, arm).committed for arm in arms]),
            np.column_stack([round_seconds(model, text, arm) for arm in arms]),
            contexts(text),
            traces.origin.max_new_tokens - 1 - np.arange(len(text)),
            np.stack([worked(text, arm, names)[0] for arm in arms], 1),
            *shared,
        )
        for text in traces.texts
    ]


def check_costs(model: CostModel, drafters: Sequence[str]) -> None:
    """Raises `DraftgymError` for a drafter that a cost model knows nothing of."""
    for name in drafters:
        if not (name in model.draft and name in model.catch_up):
            raise DraftgymError(
                f"the cost model knows no costs of {name}",
                f"leave out its arms, or measure one with it; it has {', '.join(model.draft)}",
            )


def one_each(text: PricedText) -> PricedText:
    """The text with rounds that cost one pass each, whatever is drafted and caught up.

    The cheapest walk then has the longest acceptance length.
    """
    free = CatchUps(np.zeros_like(text.catch_ups.tables))
    return replace(text, seconds=np.ones_like(text.seconds), catch_ups=free)
