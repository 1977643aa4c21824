"""Replaying traces for routers that decide twice a round (`draftgym.decoding.observers.two_stage`).

An arm with each level is an ordinary arm, so rounds are those of `Replay`. What is new is when they
are played: an episode whose arm has begun to draft waits for the second decision.

Notation: n = episodes, A = arms, L = levels, R = rows of all texts, one per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.costs.published import NOTHING
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.two_stage import (
    FACTS,
    LEVELS,
    TwoStageMemory,
    decides_twice,
    free_arms,
    variants,
)
from draftgym.rollouts.replay.replay import Replay, ReplayedRound
from draftgym.rollouts.traces.joint import asked_of, matches, path_scores
from draftgym.rollouts.traces.mapped import Room
from draftgym.rollouts.traces.trace import TextTrace, TraceSet


class TwoStageReplay(Replay):
    """Episodes over traces, whose rounds take one step or two.

    Args:
        traces: The texts; see `Replay`.
        arms: What the first decision chooses from.
        count: Episodes.
        cost_model: What rounds cost; None takes the one that was measured with the traces.
        levels: What the second decision chooses from.
    """

    memory: TwoStageMemory

    def __init__(
        self,
        traces: TraceSet,
        arms: Sequence[Arm],
        count: int = 1,
        cost_model: CostModel | None = None,
        levels: Sequence[float] = LEVELS,
    ) -> None:
        self._choices, self.levels = tuple(arms), tuple(levels)
        made = [[arm, *variants(arm, levels)] for arm in arms]
        flat = list(dict.fromkeys(arm for some in made for arm in some))
        self._variant = np.array([[flat.index(arm) for arm in some] for some in made])
        self.pending = np.full(count, -1)
        model = with_free_lookup(cost_model or traces.origin.cost_model)
        super().__init__(traces, flat, count, model)
        self.memory = TwoStageMemory(arms, count)
        self._lay_out_decisions(arms, Room(traces.scratch))

    def _lay_out_decisions(self, arms: Sequence[Arm], room: Room) -> None:
        """Puts what decisions are told of all texts behind each other, as `_lay_out` does."""
        rows, free = len(self._context), free_arms(arms)
        self._told = room((len(arms), rows), np.float32)
        self._free = room((rows, len(free) * len(FACTS)), np.float32)
        starts = zip(self.texts, self._first.tolist(), strict=True)
        for text, first in starts:
            whole = slice(first, first + len(text) + 1)
            for index, arm in enumerate(arms):
                self._told[index, whole] = np.append(_first_told(text, arm), 0)
            for index, arm in enumerate(free):
                columns = slice(index * len(FACTS), (index + 1) * len(FACTS))
                self._free[whole, columns] = np.pad(_facts(text, arm), ((0, 1), (0, 0)))

    @property
    def choices(self) -> tuple[Arm, ...]:
        """The arms that first decisions choose from."""
        return self._choices

    def start(self, episodes: NDArray[np.int64], texts: NDArray[np.int64]) -> None:
        """Begins these episodes (indices) anew, with these texts (indices)."""
        super().start(episodes, texts)
        self.pending[episodes] = -1

    def keep(self, episodes: NDArray[np.int64]) -> None:
        """Goes on with these episodes (indices) alone."""
        super().keep(episodes)
        self.pending = self.pending[episodes]

    def snapshot(self) -> dict[str, Any]:
        """Where the episodes stand, to be kept; texts are left out."""
        return super().snapshot() | {"pending": self.pending}

    def step(self, actions: NDArray[np.int64]) -> ReplayedRound:
        """Takes a decision of every episode, and plays the rounds of those that are decided.

        Args:
            actions: Arms of those that begin a round, levels of those that are drafting `[n]`;
                beyond the last one they begin again at the first.
        """
        opening = self.pending < 0
        arms = np.where(opening, actions % len(self._choices), self.pending)
        told = self._told[arms, self._row]
        waits = opening & (told >= 0)
        drafting = ~opening
        self.memory.tell(np.flatnonzero(drafting), arms[drafting], told[drafting])
        self.pending = np.where(waits, arms, -1)
        levels = np.where(opening, 0, 1 + actions % len(self.levels))
        return self._play(self._variant[arms, levels], arms, ~waits)

    def _observed(self) -> NDArray[np.float32]:
        row, asked = self._row, np.flatnonzero(self.pending >= 0)
        signals = self.memory.before_drafting(super()._observed(), self._free[row])
        arms = self.pending[asked]
        told = self._told[arms, row[asked]]
        signals[asked] = self.memory.while_drafting(signals[asked], arms, told)
        return signals


def replay_for(
    policy: Any, traces: TraceSet, count: int, cost_model: CostModel | None = None
) -> Replay:
    """Episodes that a policy can play, whether it decides once a round or twice.

    Args:
        policy: Who chooses.
        traces: The texts.
        count: Episodes.
        cost_model: What rounds cost; None takes the traces' own.

    Raises:
        DraftgymError: The policy reads what these traces do not hold, or has arms that they do not.
    """
    if getattr(policy, "reads_states", False):
        traces.require_states(f"policy {policy.name}")
    if getattr(policy, "reads_confidence", False):
        traces.require_confidence(f"policy {policy.name}")
    if getattr(policy, "watches", False):
        raise DraftgymError(
            f"policy {policy.name} watches tokens being drafted, and traces do not hold that",
            "decode live, as generate.py and evaluate.py do",
        )
    levels = getattr(policy, "levels", ())
    if levels:
        return TwoStageReplay(traces, policy.arms, count, cost_model, levels)
    return Replay(traces, policy.arms, count, cost_model)


def with_free_lookup(model: CostModel) -> CostModel:
    """The costs where drafters that look up are asked all the time: they never catch up."""
    curves = {name: NOTHING if name in LOOKUPS else one for name, one in model.catch_up.items()}
    return replace(model, catch_up=curves)


def _first_told(text: TextTrace, arm: Arm) -> NDArray[np.float32]:
    """How likely the first token is of which a second decision is told, by position; else -1."""
    told = np.full(len(text), -1.0, np.float32)
    if decides_twice(arm):
        *_, last = asked_of(text, arm)
        paths, first = path_scores(text, last.arm)
        drafted = last.drafted.drafted > 0
        if last.arm.least:
            drafted &= matches(text, last.arm) >= last.arm.least
        asked = last.where & drafted
        told[asked] = np.exp(np.where(first, paths, -np.inf).max(1)[asked])
    return told


def _facts(text: TextTrace, arm: Arm) -> NDArray[np.float32]:
    """`FACTS` of a drafter that looks up, by position `[n, 4]`."""
    paths, first = path_scores(text, arm)
    drafted = text.arms[str(arm)].drafted
    columns = [matches(text, arm) / 4, drafted / 4, np.exp(np.where(first, paths, -np.inf).max(1))]
    columns.append(np.exp(paths).sum(1) / 4)
    return np.where(drafted[:, None] > 0, np.column_stack(columns), 0).astype(np.float32)
