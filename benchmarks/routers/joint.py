"""The arms of several drafters that are fastest on some (training) traces.

They need no training and are hard to beat: prompt lookup where it finds a match, else one other
arm, is what engines ship.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import product

from draftgym.decoding.arms import Arm, Cascade, Graft
from draftgym.decoding.drafting import MAX_TREE_NODES
from draftgym.rollouts.replay.oracle import total, walk_single
from draftgym.rollouts.replay.pricing import price_traces
from draftgym.rollouts.traces.trace import TraceSet

LEAST = (0, 3, 4)
"""Match lengths from which lookup is believed."""
SURE = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2)
"""Probabilities that the other drafter must give a path."""


def best_joint_arms(traces: TraceSet, arms: Sequence[Arm]) -> list[Arm]:
    """The fastest cascade and the fastest graft of lookup and another arm, as far as there are any.

    First two parts are chosen as they are, then what lookup must match and what the other drafter
    must be sure of.

    Args:
        traces: What to choose them on.
        arms: Traced arms.
    """
    told = all(text.drafts for text in traces.texts)  # else the traces are of an older version
    lookups = {"ngram", *(key.partition(":")[0] for key in traces.texts[0].matches)}
    pairs = [
        (one, other)
        for one, other in product(arms, arms)
        if one.drafter in lookups and other.drafts and other.drafter not in lookups
    ]
    if not pairs:
        return []
    cascade = _fastest(traces, [Cascade.of(pair) for pair in pairs])
    if not told:
        return [cascade]
    small = [pair for pair in pairs if sum(one.shape.budget for one in pair) <= MAX_TREE_NODES]
    graft = _fastest(traces, [Graft.of(pair[::-1]) for pair in small])
    return [_fastest(traces, _variants(arm, lookups)) for arm in (cascade, graft)]


def _variants(arm: Arm, lookups: Collection[str]) -> Iterable[Arm]:
    """The arm of lookup and another drafter, from all match lengths and probabilities on."""
    kind = Graft if isinstance(arm, Graft) else Cascade
    for least, sure in product(LEAST, SURE):
        yield kind.of(
            [
                replace(part, least=least) if part.drafter in lookups else replace(part, sure=sure)
                for part in arm.parts
            ]
        )


def _fastest(traces: TraceSet, arms: Iterable[Arm]) -> Arm:
    """The one that writes the texts fastest, always chosen."""

    def speed(arm: Arm) -> float:
        texts = [text for text in price_traces(traces, [arm]) if len(text)]
        return total([walk_single(text, arm) for text in texts]).tokens_per_second

    return max(arms, key=speed)
