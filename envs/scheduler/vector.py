"""Many cells of users as one `gymnasium.vector.VectorEnv`: what `gymnasium.make_vec` makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.observers.observation import Observation
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.options import check_options
from draftgym.envs.reward import SchedulerReward
from draftgym.envs.scheduler.env import (
    SchedulerBeliefEnv,
    SchedulerEnv,
    SchedulerSharesEnv,
    SchedulerTiltEnv,
    question_ids,
    read_table,
    round_facts,
)
from draftgym.envs.scheduler.observation import observe_cell, scheduler_observation_space
from draftgym.envs.vector import DrawingVectorEnv, Facts
from draftgym.rollouts.traces.trace import TraceSet


class SchedulerVectorEnv(DrawingVectorEnv):
    """`draftgym/Scheduler-v0` many times, stepped together.

    Cell i plays what a `SchedulerEnv` (which has the sections on actions, observations, rewards
    and information) plays with the seed `seed + i`, but that all cells share one running price.
    `question_ids` are an array `[n, K]`; `tokens` are left out.

    Args:
        num_envs: Cells, n.
        traces, cell, price, objective: See `SchedulerEnv`.
        max_episode_steps: Steps of an episode; None for endless ones.

    Attributes:
        cell: The cells.
        reward: Of their steps.
        tokens: Tokens committed since `forget_counts`.
        seconds: Time they took, of all cells together.
        drafted: Tokens verified since then.
        user_rounds: Drafts (empty ones too) that they were in.

    Raises:
        DraftgymError: Traces, cell or objective cannot be.
    """

    single: ClassVar[type[SchedulerEnv]] = SchedulerEnv

    def __init__(
        self,
        num_envs: int,
        traces: str | Path | TraceSet | ChainTable,
        cell: CellSettings | None = None,
        price: float | str = "goodput",
        objective: str = "sum",
        max_episode_steps: int | None = None,
    ) -> None:
        settings = cell or CellSettings()
        self.table = read_table(traces, settings)
        self.cell = Cell(self.table, settings, num_envs)
        self.reward = SchedulerReward(self.cell, price, objective)
        self.actions = self.single.actions_of(settings.users, self.cell.longest)
        self._most_steps = np.inf if max_episode_steps is None else max_episode_steps
        self._steps = np.zeros(num_envs, np.int64)
        self.forget_counts()
        space = scheduler_observation_space(settings.users)
        super().__init__(num_envs, space, self.actions.space)

    def forget_counts(self) -> None:
        """Starts the counts anew."""
        self.tokens = self.seconds = self.drafted = self.user_rounds = 0.0

    def action_masks(self) -> NDArray[np.bool_]:
        """Which entries of the actions matter `[n, ...]`, for masking agents."""
        return self.actions.masks(self.cell)

    def snapshot(self) -> dict[str, Any]:
        """Where all cells stand, to be kept; traces are left out."""
        names = ("_generators", "_steps", "_running", "reward")
        return {name: getattr(self, name) for name in names} | {"cell": self.cell.snapshot()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Puts the cells where these stand; no reset is needed."""
        told = dict(snapshot)
        self.cell.restore(told.pop("cell"))
        vars(self).update(told)

    def _begin(self, episodes: NDArray[np.int64], options: dict[str, Any]) -> Facts:
        check_options(options)
        rows = np.zeros(self.num_envs, bool)
        rows[episodes] = True
        self.cell.reset(self._drawing(), rows)
        self._steps[episodes] = 0
        return {"question_ids": question_ids(self.table, self.cell)}

    def _observe(self, episodes: NDArray[np.int64] | None = None) -> Observation:
        everything = observe_cell(self.cell)
        if episodes is None:
            return everything
        return {name: value[episodes] for name, value in everything.items()}

    def _play(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Facts]:
        ids, weights = question_ids(self.table, self.cell), self.reward.weights(self.cell)
        played = self.cell.step(self.actions.plan(self.cell, actions))
        self._steps += 1
        self.tokens += float(played.committed.sum())
        self.seconds += float(played.time.total.sum())
        self.drafted += float(played.drafted.sum())
        self.user_rounds += float(played.taken.sum())
        rewards, never = self.reward(weights, played), np.zeros(self.num_envs, bool)
        facts = round_facts(self.cell, played) | {"question_ids": ids}
        facts["price"] = np.full(self.num_envs, self.reward.price)
        return rewards, never, self._steps >= self._most_steps, facts


class SchedulerBeliefVectorEnv(SchedulerVectorEnv):
    """`draftgym/SchedulerBelief-v0` many times, stepped together; see `SchedulerVectorEnv`."""

    single = SchedulerBeliefEnv


class SchedulerSharesVectorEnv(SchedulerVectorEnv):
    """`draftgym/SchedulerShares-v0` many times, stepped together; see `SchedulerVectorEnv`."""

    single = SchedulerSharesEnv


class SchedulerTiltVectorEnv(SchedulerVectorEnv):
    """`draftgym/SchedulerTilt-v0` many times, stepped together; see `SchedulerVectorEnv`."""

    single = SchedulerTiltEnv


VECTOR_FORMS: dict[type[SchedulerEnv], type[SchedulerVectorEnv]] = {
    kind.single: kind
    for kind in (
        SchedulerVectorEnv,
        SchedulerBeliefVectorEnv,
        SchedulerSharesVectorEnv,
        SchedulerTiltVectorEnv,
    )
}
"""The vector form of each environment."""
