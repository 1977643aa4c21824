"""The cascade that engines ship, by replay: prompt lookup where it finds a match, else another arm.

It needs no training and is hard to beat. A trace tells where lookup found something: there it
drafted. Asking it costs time in every round, also in those where it finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.rollouts.replay.pricing import PLAIN_ARM, PricedText, price_traces
from draftgym.rollouts.report.statistics import Work
from draftgym.rollouts.traces.trace import TraceSet

Pair = tuple[Arm, Arm]


class Played(NamedTuple):
    """One text as a router writes it: its work, and the rounds of each arm to choose from."""

    work: Work
    chosen: NDArray[np.int64]


def speed(works: Sequence[Work]) -> float:
    """Tokens a second, all texts together."""
    return sum(work.tokens for work in works) / sum(work.seconds for work in works)


def best_cascade(traces: TraceSet, arms: Sequence[Arm]) -> Pair | None:
    """Lookup and another arm, the fastest pair on some (training) traces; None without lookup."""
    lookups = [arm for arm in arms if arm.drafter == "ngram"]
    others = [arm for arm in arms if arm.drafts and arm.drafter != "ngram"]
    pairs = [(lookup, other) for lookup in lookups for other in others]
    return max(
        pairs,
        key=lambda pair: speed([text.work for text in play_cascade(traces, pair)]),
        default=None,
    )


def play_cascade(traces: TraceSet, pair: Pair, model: CostModel | None = None) -> list[Played]:
    """Every text that has a round, by lookup where it finds a match, else by the other arm.

    Args:
        traces: The texts.
        pair: Lookup, and the other arm.
        model: What rounds cost; None takes the traces' own.
    """
    priced = price_traces(traces, [*pair, PLAIN_ARM], model)
    return [
        _play(one, text.arms[str(pair[0])].drafted > 0)
        for text, one in zip(traces.texts, priced, strict=True)
        if len(one)
    ]


def _play(text: PricedText, found: NDArray[np.bool_]) -> Played:
    """A text with the arms lookup, other and plain, by where lookup finds something `[n]`."""
    position, seconds, chosen = 0, 0.0, np.zeros(2, np.int64)
    last_used = text.never.copy()
    while position < len(text):
        costs = text.round_seconds(position, last_used)
        arm = 0 if found[position] else 1
        seconds += float(costs[arm])
        if arm:  # in vain, lookup was asked all the same: its round would have been a plain one
            seconds += max(0.0, float(costs[0] - costs[2]))
        last_used[text.drafter[[0, arm]]] = text.contexts[position]
        position += int(text.committed[position, arm])
        chosen[arm] += 1
    return Played(Work(len(text), seconds), chosen)
