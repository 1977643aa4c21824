"""Routers that decide twice a round: which arm, and while it drafts, how sure it must be to go on.

The first decision knows what is free: what drafters that look up would propose now. The second is
taken when the likeliest first token is drafted, with its probability in view: paths that are less
likely than a level are neither drafted further nor verified. An arm with a level is an ordinary arm
(`eagle3:3x6~0.1`), so what such a router does can be traced, replayed and priced as ever.

Notation: A = arms, F = free facts, N = drafters that do not look up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, Graft, single_arms
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.observers.observation import (
    RouterMemory,
    RouterObserver,
    drafter_names,
    signal_names,
)
from draftgym.decoding.observers.watching import WatchingObserver
from draftgym.decoding.round import RoundRecord, draft
from draftgym.decoding.session import Session
from draftgym.decoding.verify.proposal import Proposal

LEVELS = (0.0, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8)
"""Probabilities that a path must have, as the second decision can set them."""
FACTS = ("match", "drafted", "first", "expected")
"""What is known of a proposal for free: newest tokens that match and tokens proposed, both / 4;
probability of the likeliest first token; tokens that it expects to be accepted / 4."""


def decides_twice(arm: Arm) -> bool:
    """Whether a second decision follows on an arm; a graft verifies what it has."""
    return arm.drafts and not isinstance(arm, Graft)


def variants(arm: Arm, levels: Sequence[float] = LEVELS) -> list[Arm]:
    """The arms that the second decision makes of one; by itself it may be surer than a level."""
    if not decides_twice(arm):
        return [arm] * len(levels)
    last = arm.parts[-1]
    return [arm.ending_in(replace(last, sure=max(last.sure, level))) for level in levels]


def free_arms(arms: Sequence[Arm]) -> list[Arm]:
    """Of every drafter that looks up, the first arm: it is what free facts are told of."""
    first = {arm.drafter: arm for arm in reversed(single_arms(arms)) if arm.drafter in LOOKUPS}
    return [first[name] for name in drafter_names(arms) if name in first]


def two_stage_names(arms: Sequence[Arm]) -> list[str]:
    """Name of each entry of `signals`, in order; the first ones are those of `signal_names`."""
    free = [f"{fact}_{arm.drafter}" for arm in free_arms(arms) for fact in FACTS]
    told = [f"first_{name}" for name in _networks(arms)]
    chosen = [f"chosen_{arm}" for arm in arms]
    return [*signal_names(arms), *free, *told, "second", "first", *chosen]


def facts_of(proposal: Proposal) -> list[float]:
    """`FACTS` of a proposal."""
    if not len(proposal):
        return [0.0] * len(FACTS)
    first, expected = proposal.first_score(), sum(map(math.exp, proposal.path_scores()))
    return [proposal.match / 4, len(proposal) / 4, math.exp(first), expected / 4]


class TwoStageMemory(RouterMemory):
    """What such routers remember: also how sure each drafter was when it drafted last.

    Args:
        arms: Arms of the policy, in its order.
        count: Episodes.
    """

    def __init__(self, arms: Sequence[Arm], count: int = 1) -> None:
        networks = _networks(arms)
        names = [arm.parts[-1].drafter if decides_twice(arm) else "" for arm in arms]
        self._column = np.array([networks.index(one) if one in networks else -1 for one in names])
        self._told = np.zeros((count, len(networks)))
        super().__init__(arms, count)

    def forget(self, episodes: NDArray[np.int64]) -> None:
        """Starts these episodes anew."""
        super().forget(episodes)
        self._told[episodes] = 0

    def keep(self, episodes: NDArray[np.int64]) -> None:
        """Goes on with these episodes (indices) alone."""
        super().keep(episodes)
        self._told = self._told[episodes]

    def tell(
        self, episodes: NDArray[np.int64], arms: NDArray[np.int64], first: NDArray[Any]
    ) -> None:
        """Takes in how likely the first tokens of some drafts are `[k]`."""
        columns = self._column[arms]
        known = columns >= 0
        self._told[episodes[known], columns[known]] = first[known]

    def before_drafting(
        self, signals: NDArray[np.float32], free: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """What the first decision sees: `[n, len(two_stage_names(arms))]`.

        Args:
            signals: `RouterMemory.signals`.
            free: `FACTS` of every drafter that looks up `[n, F]`.
        """
        blank = np.zeros((len(signals), 2 + len(self._column)))
        return np.concatenate([signals, free, self._told, blank], axis=1, dtype=np.float32)

    def while_drafting(
        self, signals: NDArray[np.float32], arms: NDArray[np.int64], first: NDArray[Any]
    ) -> NDArray[np.float32]:
        """What the second decision sees, of what the first one saw.

        Args:
            signals: `before_drafting` `[k, s]`.
            arms: What was chosen `[k]`.
            first: How likely their first tokens are `[k]`.
        """
        seen, count = signals.copy(), len(self._column)
        seen[:, -count - 2], seen[:, -count - 1] = 1, first
        seen[np.arange(len(seen)), arms - count] = 1
        return seen


class TwoStageObserver(RouterObserver):
    """Follows one session, describes it, and asks the policy again while it drafts.

    Args:
        arms: Arms of the policy, in its order.
        levels: What the second decision chooses from.
    """

    memory: TwoStageMemory

    def __init__(self, arms: Sequence[Arm], levels: Sequence[float] = LEVELS) -> None:
        super().__init__(arms)
        self.memory, self.levels = TwoStageMemory(arms), tuple(levels)
        self._free = free_arms(arms)

    def arm(self, policy: Any, action: int) -> Arm:
        """The chosen arm, which asks the policy how sure it must be once it has begun to draft."""
        index = action % len(self.arms)
        arm = self.arms[index]
        if not decides_twice(arm):
            return arm
        signals, hidden = self.seen

        def ask(first: float) -> float:
            seen = self.told(signals, index, math.exp(first))
            again, _ = policy.predict({"signals": seen, "hidden": hidden}, deterministic=True)
            return self.levels[int(again) % len(self.levels)]

        return arm.ending_in(replace(arm.parts[-1], ask=ask))

    def told(self, signals: NDArray[np.float32], arm: int, first: float) -> NDArray[np.float32]:
        """Takes in how likely an arm's first token is; what is seen then `[s]`."""
        arms, known = np.array([arm]), np.array([first])
        seen: NDArray[np.float32] = self.memory.while_drafting(signals[None], arms, known)[0]
        self.memory.tell(np.zeros(1, np.int64), arms, known)
        return seen

    def update(self, action: int | None, record: RoundRecord) -> None:
        """Takes in what a round did; see `RouterObserver.update`."""
        super().update(None if action is None else action % len(self.arms), record)

    def _signals(self, session: Session, sure: NDArray[np.float32]) -> NDArray[np.float32]:
        facts = [fact for arm in self._free for fact in self._looked_up(session, arm)]
        free = np.array(facts, dtype=np.float32)[None]
        return self.memory.before_drafting(super()._signals(session, sure), free)

    def _looked_up(self, session: Session, arm: Arm) -> list[float]:
        return facts_of(Proposal.empty() if session.finished else draft(session, arm).proposal)


def observer_of(policy: Any) -> RouterObserver:
    """What follows a session for a policy: it decides once a round, twice, or after every token."""
    if getattr(policy, "watches", False):
        return WatchingObserver(policy.arms)
    levels = getattr(policy, "levels", ())
    return TwoStageObserver(policy.arms, levels) if levels else RouterObserver(policy.arms)


def _networks(arms: Sequence[Arm]) -> list[str]:
    return [name for name in drafter_names(arms) if name not in LOOKUPS]
