"""Many cells of users as one Stable-Baselines3 environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from draftgym.agents.common.array_vec_env import ArrayVecEnv
from draftgym.decoding.observation import Observation
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.env import SchedulerEnv, read_table
from draftgym.envs.scheduler.observation import observe_cell, scheduler_observation_space
from draftgym.envs.scheduler.reward import SchedulerReward
from draftgym.policies.multispin.problem import Plan
from draftgym.rollouts.traces.trace import TraceSet


class Planner(Protocol):
    """Who could plan the steps of these cells as well."""

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""


class SchedulerVecEnv(ArrayVecEnv):
    """Steps n cells as array operations; each is a `SchedulerEnv` with a seed of its own.

    Cell i plays what a `SchedulerEnv` with the seed `seed + i` plays (but that all cells share one
    running price). Episodes end by their number of steps alone, all at once.

    Args:
        traces: See `SchedulerEnv`.
        cell: What the cells are made of.
        count: Cells, n.
        price: See `SchedulerEnv`.
        objective: See there.
        kind: The environment whose actions are taken.
        episode_steps: Steps of an episode.
        seed: Seed of the first cell.

    Attributes:
        reference: Who else plans every step, without being played; None for nobody.
        reference_rewards: What the last step would have been worth by its plans `[n]`.
        tokens: Tokens committed since `forget_counts`.
        seconds: Time they took, of all cells together.
        drafted: Tokens verified since then.
        user_rounds: Drafts (empty ones too) that they were in.
    """

    def __init__(
        self,
        traces: str | Path | TraceSet | ChainTable,
        cell: CellSettings,
        count: int,
        price: float | str = "goodput",
        objective: str = "sum",
        kind: type[SchedulerEnv] = SchedulerEnv,
        episode_steps: int = 256,
        seed: int = 0,
    ) -> None:
        self.cell = Cell(read_table(traces, cell), cell, count)
        self.reward = SchedulerReward(self.cell, price, objective)
        self.actions = kind.actions_of(cell.users, self.cell.longest)
        self.episode_steps = episode_steps
        self.reference: Planner | None = None
        self.reference_rewards = np.zeros(count)
        super().__init__(count, scheduler_observation_space(cell.users), self.actions.space)
        self.seed(seed)
        self.forget_counts()

    def forget_counts(self) -> None:
        """Starts the counts anew."""
        self.tokens = self.seconds = self.drafted = self.user_rounds = 0.0

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds the cells, each with the next number."""
        seeds = [None if seed is None else seed + index for index in range(self.num_envs)]
        self._generators = [np_random(one)[0] for one in seeds]
        return seeds

    def action_masks(self) -> NDArray[np.bool_]:
        """Which entries of the actions matter `[n, ...]`, for masking agents."""
        return self.actions.masks(self.cell)

    def _begin(self) -> Observation:
        self.cell.reset(self._generators)
        self._steps = 0
        return observe_cell(self.cell)

    def _play(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], bool]:
        weights = self.reward.weights(self.cell)
        if self.reference is not None:
            preview = self.cell.preview(self.reference.plan())
            self.reference_rewards = self.reward.worth(weights, *preview)
        played = self.cell.step(self.actions.plan(self.cell, actions))
        self._steps += 1
        self.tokens += float(played.committed.sum())
        self.seconds += float(played.time.total.sum())
        self.drafted += float(played.drafted.sum())
        self.user_rounds += float(played.taken.sum())
        done = np.full(self.num_envs, self._steps >= self.episode_steps)
        return observe_cell(self.cell), self.reward(weights, played), done, True

    def _restart(self, finished: NDArray[np.int64]) -> Observation:
        return self._begin()  # all end together
