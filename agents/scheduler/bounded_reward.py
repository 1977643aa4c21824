"""Rewards that a network can learn from, where a single deep fade costs minutes.

Under Rayleigh fading the time of a round has no mean (docs/guides/schedulers.md): one round in ten
thousand may cost more than all the others together, and would be all that a batch of advantages
knows. So a loss counts in full up to the most that a round can gain, and by its logarithm beyond.
Worse rounds stay worse. Rewards are per user, so that hyperparameters fit cells of any size.

Most of what a round earns is luck: what the target happened to accept, which fades there were. The
same luck awaits every plan, so where there is a reference (`BoundedReward.reference`),
what its plan would have earned in that very round is taken off: a control variate, which shifts no
action's advantage over another. What is validated and reported is total tokens over total time,
without any of this.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from draftgym.agents.common.vec_env import SB3VecEnv
from draftgym.envs.scheduler.vector import SchedulerVectorEnv
from draftgym.policies.multispin.problem import Plan


class Planner(Protocol):
    """Who could plan the steps of these cells as well."""

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""


class BoundedReward(VecEnvWrapper):
    """Cells for Stable-Baselines3, with bounded rewards per user.

    Args:
        cells: The cells.
        seed: Seed of the first one; None for none.

    Attributes:
        reference: Who else plans every step, without being played; None for nobody.
        playing: The cells as SB3 plays them.
    """

    def __init__(self, cells: SchedulerVectorEnv, seed: int | None = None) -> None:
        self.playing = SB3VecEnv(cells, seed)
        super().__init__(self.playing)
        self.cells = cells
        self.reference: Planner | None = None
        self.users = cells.cell.settings.users
        self.most = cells.cell.longest + 1.0

    def reset(self) -> VecEnvObs:
        """Begins every cell anew."""
        return self.venv.reset()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Takes the actions `[n, ...]`, and looks at what the reference would get."""
        if self.reference is not None:
            cell, reward = self.cells.cell, self.cells.reward
            preview = cell.preview(self.reference.plan())
            self._reference_rewards = reward.worth(reward.weights(cell), *preview)
        super().step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Plays a round; episode returns in infos are the cells' own."""
        observation, rewards, done, infos = self.venv.step_wait()
        seen = bounded(rewards / self.users, self.most)
        if self.reference is not None:
            seen -= bounded(self._reference_rewards / self.users, self.most)
        return observation, seen, done, infos


def bounded(rewards: NDArray[Any], most: float) -> NDArray[np.float32]:
    """Rewards whose losses beyond `most` are `most * (1 + ln(loss / most))`.

    Args:
        rewards: Any numbers.
        most: Above 0.
    """
    beyond = np.maximum(-rewards / most, 1.0)
    return np.where(rewards < -most, -most * (1 + np.log(beyond)), rewards).astype(np.float32)
