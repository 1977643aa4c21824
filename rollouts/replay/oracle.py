"""Walks over traces: the rounds of one arm, of a greedy choice, and of the best choice there is.

An *oracle* knows what every arm would commit at every position. Committed tokens depend on the
position alone, so its best rounds are a shortest path over positions; since switching to a drafter
costs what that drafter must catch up, a state also knows when each drafter worked last. No router
that chooses among the same arms can be cheaper than `walk_optimal`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.rollouts.replay.pricing import CatchUps, PricedText, backlogs


@dataclass(frozen=True)
class Walk:
    """The rounds that write one text.

    Attributes:
        question_id: Which prompt.
        tokens: Tokens they commit (all but the first, which the prompt's pass gives).
        seconds: What they cost in all.
        arms: What each chose, as indices into the text's arms.
    """

    question_id: str
    tokens: int
    seconds: float
    arms: tuple[int, ...]

    @property
    def rounds(self) -> int:
        """How many there are."""
        return len(self.arms)


@dataclass(frozen=True)
class Total:
    """Walks of several texts together; rates are ratios of these sums.

    Attributes:
        tokens: Tokens they commit.
        rounds: How many rounds there are.
        seconds: What they cost in all.
    """

    tokens: int
    rounds: int
    seconds: float

    @property
    def acceptance_length(self) -> float:
        """Tokens per round."""
        return self.tokens / max(1, self.rounds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second; 0 where there is nothing to write."""
        return self.tokens / self.seconds if self.seconds else 0.0


def total(walks: Sequence[Walk]) -> Total:
    """All texts together."""
    return Total(
        sum(walk.tokens for walk in walks),
        sum(walk.rounds for walk in walks),
        sum(walk.seconds for walk in walks),
    )


Choice = Callable[[int, NDArray[np.float64]], int]
"""Chooses an arm, given the position and what a round with each costs there `[A]`."""


def walk(text: PricedText, choose: Choice) -> Walk:
    """The rounds of any way of choosing."""
    position, seconds = 0, 0.0
    chosen: list[int] = []
    last_used = text.never.copy()
    while position < len(text):
        costs = text.round_seconds(position, last_used)
        arm = choose(position, costs)
        seconds += float(costs[arm])
        last_used[text.asked[position, arm]] = text.contexts[position]
        position += int(text.committed[position, arm])
        chosen.append(arm)
    return Walk(text.question_id, len(text), seconds, tuple(chosen))


def walk_single(text: PricedText, arm: Arm) -> Walk:
    """The rounds of always choosing one arm, all at once: they are known beforehand."""
    index = text.arms.index(arm)
    committed, at, position = text.committed[:, index].tolist(), list[int](), 0
    while position < len(text):
        at.append(position)
        position += committed[position]
    rounds = np.array(at, dtype=np.int64)
    seconds = float(text.seconds[rounds, index].sum())
    for drafter, table in enumerate(text.catch_ups.tables):
        worked = rounds[text.asked[rounds, index, drafter]]
        before = np.append(text.never[drafter], text.contexts[worked])[:-1]
        waited = backlogs(text.contexts[worked], before, text.remaining[worked])
        seconds += float(table[waited].sum())
    return Walk(text.question_id, len(text), seconds, (index,) * len(at))


def walk_greedy(text: PricedText, price: float) -> Walk:
    """Each round the arm that earns most in this round, as if it were the last.

    Args:
        text: The text.
        price: What a second is worth, in tokens (`greedy_price`).
    """
    return walk(
        text, lambda position, costs: int(np.argmax(text.committed[position] - price * costs))
    )


def greedy_price(texts: Sequence[PricedText]) -> float:
    """The price at which the greedy oracle writes just as many tokens per second (Dinkelbach).

    A greedy choice is not the best one for its price, so prices may come round in a circle; then it
    is the best price that was met.
    """
    price, rates = 0.0, dict[float, float]()
    while price not in rates:
        rates[price] = total([walk_greedy(text, price) for text in texts]).tokens_per_second
        price = rates[price]
    return max(reversed(rates), key=lambda met: rates[met])


def walk_optimal(text: PricedText) -> Walk:
    """The cheapest rounds that write the text, by label setting over positions.

    A label is a way of getting to a position: seconds so far, and where each drafter worked last.
    It is dropped when a label there is no dearer even after paying whatever more its own backlogs
    can cost. That difference falls due at most once per drafter: who uses it has caught up.
    """
    count = len(text)
    history = _History()
    waiting: list[list[_Labels]] = [[] for _ in range(count + 1)]
    waiting[0] = [_Labels(np.zeros(1), text.never[None], np.array([-1]), np.array([-1]))]
    for position in range(count):
        if not waiting[position]:  # no sequence of choices begins a round here
            continue
        labels = _join(waiting[position])
        labels = labels.at(_undominated(labels, text.contexts[position], text.catch_ups))
        numbers = history.add(labels)
        costs = text.round_seconds(position, labels.last_used)
        for arm, committed in enumerate(text.committed[position]):
            last_used = labels.last_used.copy()
            last_used[:, text.asked[position, arm]] = text.contexts[position]
            by = np.full(len(numbers), arm)
            reached = _Labels(labels.seconds + costs[:, arm], last_used, numbers, by)
            waiting[position + committed].append(reached)
    end = _join(waiting[count])
    chosen = iter(history.arms_to(int(history.add(end)[np.argmin(end.seconds)])))
    return walk(text, lambda position, costs: next(chosen))


@dataclass(frozen=True, eq=False)
class _Labels:
    """Ways of getting to one position.

    Attributes:
        seconds: What they cost `[K]`.
        last_used: Contexts at which the drafters worked last `[K, D]`.
        before: Number of the label that each goes on from, -1 at the start `[K]`.
        arms: The last choice, -1 at the start `[K]`.
    """

    seconds: NDArray[np.float64]
    last_used: NDArray[np.int64]
    before: NDArray[np.int64]
    arms: NDArray[np.int64]

    def at(self, rows: NDArray[np.int64]) -> _Labels:
        """Some of them."""
        return _Labels(self.seconds[rows], self.last_used[rows], self.before[rows], self.arms[rows])


class _History:
    """How every label that was kept came about."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int]] = []

    def add(self, labels: _Labels) -> NDArray[np.int64]:
        """Numbers some labels."""
        start = len(self._steps)
        self._steps += zip(labels.before.tolist(), labels.arms.tolist(), strict=True)
        return np.arange(start, len(self._steps))

    def arms_to(self, number: int) -> list[int]:
        """All choices that lead to a label, in order."""
        backwards: list[int] = []
        while number >= 0:
            number, arm = self._steps[number]
            backwards.append(arm)
        return backwards[-2::-1]  # the start chose nothing


def _join(groups: Sequence[_Labels]) -> _Labels:
    return _Labels(
        np.concatenate([labels.seconds for labels in groups]),
        np.concatenate([labels.last_used for labels in groups]),
        np.concatenate([labels.before for labels in groups]),
        np.concatenate([labels.arms for labels in groups]),
    )


def _undominated(labels: _Labels, context: int, catch_ups: CatchUps) -> NDArray[np.int64]:
    """Rows of the labels that may still lead to the cheapest walk."""
    backlog = context - labels.last_used
    left = np.argsort(labels.seconds, kind="stable")
    kept: list[int] = []
    while len(left):  # the cheapest of those that are left is dominated by none of them
        best, left = left[0], left[1:]
        kept.append(int(best))
        extra = np.zeros(len(left))
        for drafter in range(backlog.shape[1]):
            extra += catch_ups.most_extra(drafter, backlog[best, drafter], backlog[left, drafter])
        left = left[labels.seconds[best] + extra > labels.seconds[left]]
    return np.array(kept)
