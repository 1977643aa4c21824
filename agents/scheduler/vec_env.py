"""Many cells of users as one Stable-Baselines3 environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from draftgym.agents.common.vec_env import SB3VecEnv
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.env import SchedulerEnv
from draftgym.envs.scheduler.vector import VECTOR_FORMS, SchedulerVectorEnv
from draftgym.policies.multispin.problem import Plan
from draftgym.rollouts.traces.trace import TraceSet


class Planner(Protocol):
    """Who could plan the steps of these cells as well."""

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""


class SchedulerVecEnv(SB3VecEnv[SchedulerVectorEnv]):
    """`SchedulerVectorEnv`, which tells the arguments, for Stable-Baselines3.

    Attributes:
        reference: Who else plans every step, without being played; None for nobody.
        reference_rewards: What the last step would have been worth by its plans `[n]`.
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
        env = VECTOR_FORMS[kind](count, traces, cell, price, objective, episode_steps)
        self.reference: Planner | None = None
        self.reference_rewards = np.zeros(count)
        super().__init__(env, seed)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Takes the actions `[n, ...]`, and looks at what the reference would get."""
        if self.reference is not None:
            cell, reward = self.env.cell, self.env.reward
            preview = cell.preview(self.reference.plan())
            self.reference_rewards = reward.worth(reward.weights(cell), *preview)
        super().step_async(actions)
