"""The arms of several drafters that are fastest on some (training) traces.

They need no training and are hard to beat: prompt lookup where it finds a match, else one other
arm, is what engines ship.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from draftgym.decoding.arms import Arm, Cascade, Graft
from draftgym.decoding.drafting import MAX_TREE_NODES
from draftgym.rollouts.replay.oracle import total, walk_single
from draftgym.rollouts.replay.pricing import price_traces
from draftgym.rollouts.traces.trace import TraceSet

LEAST = (0, 3, 4)
"""Match lengths from which lookup is believed."""


def best_joint_arms(traces: TraceSet, arms: Sequence[Arm]) -> list[Arm]:
    """The fastest cascade and the fastest graft of lookup and another arm, as far as there are any.

    Args:
        traces: What to choose them on.
        arms: Traced arms.
    """
    candidates = list(joint_arms(traces, arms))
    if not candidates:
        return []
    texts = [text for text in price_traces(traces, candidates) if len(text)]
    speeds = {
        arm: total([walk_single(text, arm) for text in texts]).tokens_per_second
        for arm in candidates
    }
    kinds = ([arm for arm in candidates if isinstance(arm, kind)] for kind in (Cascade, Graft))
    return [max(some, key=lambda arm: speeds[arm]) for some in kinds if some]


def joint_arms(traces: TraceSet, arms: Sequence[Arm]) -> Iterator[Arm]:
    """Cascades from every match length on, and grafts, of lookup and every other arm."""
    told = all(text.drafts for text in traces.texts)  # else the traces are of an older version
    lookups = [arm for arm in arms if told and arm.drafter in traces.texts[0].matches]
    lookups = lookups or [arm for arm in arms if arm.drafter == "ngram"]
    for lookup in lookups:
        for other in arms:
            if not other.drafts or other.drafter in {one.drafter for one in lookups}:
                continue
            for least in LEAST if told else LEAST[:1]:
                yield Cascade.of([replace(lookup, least=least), other])
            if told and lookup.shape.budget + other.shape.budget <= MAX_TREE_NODES:
                yield Graft.of([other, lookup])
