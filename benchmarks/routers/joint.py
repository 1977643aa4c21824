"""The arms that are fastest on some (training) traces, by family of rules.

They need no training and are hard to beat. A family is a rule that engines ship or papers propose:
what it may set is chosen on the traces, one setting at a time until none of them helps, beginning
with each arm of lookup. All combinations would be thousands of arms, a few tenths of a second each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from draftgym.decoding.arms import Arm, Cascade, Graft
from draftgym.decoding.drafting import MAX_TREE_NODES
from draftgym.rollouts.replay.oracle import total, walk_single
from draftgym.rollouts.replay.pricing import price_traces
from draftgym.rollouts.traces.trace import TraceSet

LEAST = (0, 3, 4)
"""Match lengths from which lookup is believed."""
LIKELY = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8)
"""Probabilities that lookup must give a path."""
SURE = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2)
"""Probabilities that the other drafter must give a path."""
UNSET = (0,)


@dataclass(frozen=True)
class Family:
    """Arms of one kind, and what it may set.

    Attributes:
        kind: How lookup and another drafter go together; None: the other drafter alone.
        least: Match lengths of lookup.
        likely: Path probabilities of lookup.
        sure: Path probabilities of the other drafter.
    """

    kind: type[Cascade | Graft] | None
    least: Sequence[int] = UNSET
    likely: Sequence[float] = UNSET
    sure: Sequence[float] = UNSET

    def arm(self, drafter: Arm, least: int, likely: float, sure: float, lookup: Arm) -> Arm:
        """Its arm with these settings."""
        drafter = replace(drafter, sure=sure)
        if self.kind is None:
            return drafter
        lookup = replace(lookup, least=least, sure=likely)
        return self.kind.of([drafter, lookup] if self.kind is Graft else [lookup, drafter])


EARLY_STOP, CASCADE, GRAFT = "early stop", "cascade", "graft"
FAMILIES = {
    EARLY_STOP: Family(None, sure=SURE),
    "cascade by match length": Family(Cascade, least=LEAST),
    "cascade by score": Family(Cascade, likely=LIKELY),
    "cascade with early stop": Family(Cascade, sure=SURE),
    CASCADE: Family(Cascade, LEAST, LIKELY, SURE),
    GRAFT: Family(Graft, LEAST, LIKELY, SURE),
}
"""Rules by name. Early stop: the draft model stops where no path is likely enough (llama.cpp's and
OpenVINO's thresholds, D-Cut). By match length: TensorRT-LLM's suffix automaton before a draft
model. By score: SuffixDecoding's hybrid. With early stop: llama.cpp's order of drafters with its
threshold. The last two may set everything; graft is arXiv 2605.20104."""


class Tuner:
    """Chooses arms on traces; what was priced once is remembered.

    Args:
        traces: What to choose them on.
        arms: Traced arms.
    """

    def __init__(self, traces: TraceSet, arms: Sequence[Arm]) -> None:
        looking = {"ngram", *(key.partition(":")[0] for key in traces.texts[0].matches)}
        single = [arm for arm in arms if len(arm.parts) == 1 and arm == arm.whole]
        self._traces, self._speeds = traces, dict[Arm, float]()
        self._found: list[tuple[Family, list[Any]]] = []
        self._lookups = [arm for arm in single if arm.drafter in looking]
        self._others = [arm for arm in single if arm.drafter not in looking]
        self._told = self._tells(self._lookups), self._tells(self._others)

    def best(self, family: Family, drafter: str | None = None) -> Arm | None:
        """The fastest arm of a family, or None where the traces know none.

        Args:
            family: Which.
            drafter: The drafter beside lookup; None: any.
        """
        others = [arm for arm in self._others if drafter in (None, arm.drafter)]
        lookups = self._lookups if family.kind else [Arm("", 0)]  # it has no say
        copied, thought = self._told  # whose drafted tokens the traces hold
        if not (others and lookups) or (family.kind is not Cascade and not thought):
            return None
        settings: list[Sequence[float]] = [UNSET] * 3
        if copied:
            settings[:2] = [family.least, family.likely]
        if thought:
            settings[2] = family.sure
        drafters = sorted(others, key=self.speed, reverse=True)
        axes = [drafters, *settings, lookups]
        # What lookup must be sure of depends on which it is: begin with each, and tune that first.
        starts = [[*(axis[0] for axis in axes[:-1]), lookup] for lookup in lookups]
        # Begin with what narrower families found, too: a wider one is never slower.
        starts += [found for one, found in self._found if one.kind is family.kind]
        starts = [s for s in starts if all(v in axis for v, axis in zip(s, axes, strict=True))]

        def worth(chosen: Sequence[Any]) -> float:
            return self.speed(family.arm(*chosen))

        found = max((climb(axes, start, worth) for start in starts), key=worth)
        self._found.append((family, found))
        arm = family.arm(*found)
        return arm if self.speed(arm) else None

    def families(self) -> dict[str, Arm]:
        """The fastest arm of each family that the traces know."""
        found = {name: self.best(family) for name, family in FAMILIES.items()}
        return {name: arm for name, arm in found.items() if arm is not None}

    def _tells(self, arms: Sequence[Arm]) -> bool:
        """Whether the traces hold the drafted tokens of all of these."""
        return all(self._traces.tells(replace(arm, sure=SURE[-1])) for arm in arms)

    def speed(self, arm: Arm) -> float:
        """Tokens per second of writing all texts with it; 0 if no target takes its trees."""
        if isinstance(arm, Graft) and arm.shape.budget > MAX_TREE_NODES:
            return 0.0
        if arm not in self._speeds:
            texts = [text for text in price_traces(self._traces, [arm]) if len(text)]
            self._speeds[arm] = total([walk_single(t, arm) for t in texts]).tokens_per_second
        return self._speeds[arm]


def climb(
    axes: Sequence[Sequence[Any]],
    chosen: list[Any],
    worth: Callable[[Sequence[Any]], float],
) -> list[Any]:
    """From a choice to one that no change of a single coordinate makes worth more."""
    while True:
        before = list(chosen)
        for place, axis in enumerate(axes):
            tried = [[*chosen[:place], value, *chosen[place + 1 :]] for value in axis]
            chosen = max([chosen, *tried], key=worth)  # of equals the first: what is chosen
        if chosen == before:
            return chosen
