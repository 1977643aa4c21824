"""What choosing arms can win: duels position by position, and the prize of routing.

The *prize* is what the exact optimum gains over always using the best single arm. In between lie
choices that know less: the best arm of each category, of each prompt, and the greedy oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from draftgym.decoding.arms import Arm
from draftgym.rollouts.replay.oracle import (
    Total,
    Walk,
    greedy_price,
    total,
    walk_greedy,
    walk_optimal,
    walk_single,
)
from draftgym.rollouts.replay.pricing import PricedText


@dataclass(frozen=True)
class Duel:
    """Two arms at the same positions.

    Attributes:
        first: Share of positions at which the first commits more.
        equal: Share of ties.
        second: Share at which the second commits more.
    """

    first: float
    equal: float
    second: float


def duel(
    texts: Sequence[PricedText], first: Arm, second: Arm, positions: range | None = None
) -> Duel:
    """How often one arm commits more than the other, over all texts.

    Args:
        texts: The texts.
        first: An arm.
        second: Another one.
        positions: Only these positions; None for all.
    """
    part = slice(None) if positions is None else slice(positions.start, positions.stop)
    ahead = np.concatenate(
        [
            text.committed[part, text.arms.index(first)]
            - text.committed[part, text.arms.index(second)]
            for text in texts
        ]
    )
    count = max(1, len(ahead))
    wins = ((ahead > 0).sum(), (ahead == 0).sum(), (ahead < 0).sum())
    return Duel(*(float(win) / count for win in wins))


@dataclass(frozen=True)
class TextWalks:
    """One text by every way of choosing.

    Attributes:
        category: Its category.
        singles: Always the same arm, by arm.
        greedy: The greedy oracle, at the price that fits all texts.
        optimal: The exact optimum.
    """

    category: str
    singles: dict[Arm, Walk]
    greedy: Walk
    optimal: Walk


def walk_texts(texts: Sequence[PricedText]) -> list[TextWalks]:
    """Walks over all texts in every way."""
    price = greedy_price(texts)
    return [
        TextWalks(
            text.category,
            {arm: walk_single(text, arm) for arm in text.arms},
            walk_greedy(text, price),
            walk_optimal(text),
        )
        for text in texts
    ]


def best_arm(walks: Sequence[TextWalks]) -> Arm:
    """The single arm that costs least over some texts."""
    return min(walks[0].singles, key=lambda arm: _single(walks, arm).seconds)


@dataclass(frozen=True)
class Prize:
    """The same texts by choices that know more and more.

    Attributes:
        best: The single arm to compare with.
        single: Always that one.
        by_category: The best arm of each category.
        by_prompt: The best arm of each prompt.
        greedy: The greedy oracle, which looks one round ahead.
        optimal: The exact optimum: no router can be cheaper.
    """

    best: Arm
    single: Total
    by_category: Total
    by_prompt: Total
    greedy: Total
    optimal: Total

    @property
    def gain(self) -> float:
        """Speed-up of the optimum over the single arm, minus one."""
        return self.gain_of(self.optimal)

    def gain_of(self, chosen: Total) -> float:
        """Speed-up of any of these over the single arm, minus one."""
        return self.single.seconds / chosen.seconds - 1 if chosen.seconds else 0.0


def prize(walks: Sequence[TextWalks], best: Arm | None = None) -> Prize:
    """What choosing wins on some texts.

    Args:
        walks: The texts (`walk_texts`).
        best: The single arm to compare with; by default the one that is best on these texts.
    """
    best = best or best_arm(walks)
    by_category = []
    for category in dict.fromkeys(text.category for text in walks):
        mine = [text for text in walks if text.category == category]
        arm = best_arm(mine)
        by_category += [text.singles[arm] for text in mine]
    return Prize(
        best,
        _single(walks, best),
        total(by_category),
        total([min(text.singles.values(), key=lambda walk: walk.seconds) for text in walks]),
        total([text.greedy for text in walks]),
        total([text.optimal for text in walks]),
    )


def largest_pair(texts: Sequence[PricedText]) -> tuple[Arm, Arm]:
    """The two arms between which perfect choice gains most.

    Switching that costs nothing bounds the gain of a pair, at a fraction of the work; pairs are
    solved in the order of that bound, until none can win any more.
    """
    arms = texts[0].arms
    singles = {arm: total([walk_single(text, arm) for text in texts]).seconds for arm in arms}
    bounds = {
        pair: min(singles[arm] for arm in pair) / max(1e-12, sum(map(_floor, _pairs(texts, pair))))
        for pair in combinations(arms, 2)
    }
    best, found = 0.0, arms[:2]
    for pair in sorted(bounds, key=lambda one: -bounds[one]):
        if bounds[pair] <= best:
            break
        optimal = total([walk_optimal(text) for text in _pairs(texts, pair)]).seconds
        ratio = min(singles[arm] for arm in pair) / max(1e-12, optimal)
        if ratio > best:
            best, found = ratio, pair
    return found[0], found[1]


def _single(walks: Sequence[TextWalks], arm: Arm) -> Total:
    return total([text.singles[arm] for text in walks])


def _pairs(texts: Sequence[PricedText], arms: Sequence[Arm]) -> list[PricedText]:
    return [text.only(arms) for text in texts]


def _floor(text: PricedText) -> float:
    """Seconds of the cheapest rounds if nobody ever had to catch up."""
    ahead = [0.0] * (len(text) + 1)
    committed, seconds = text.committed.tolist(), text.seconds.tolist()
    for position in range(len(text) - 1, -1, -1):
        ahead[position] = min(
            cost + ahead[position + count]
            for cost, count in zip(seconds[position], committed[position], strict=True)
        )
    return ahead[0]
