"""Many replayed episodes as one Stable-Baselines3 environment."""

from __future__ import annotations

from collections.abc import Sequence

from draftgym.agents.common.vec_env import SB3VecEnv
from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.envs.router.replay import RouterReplayVectorEnv
from draftgym.rollouts.traces.trace import TraceSet


class ReplayVecEnv(SB3VecEnv[RouterReplayVectorEnv]):
    """`RouterReplayVectorEnv`, which tells the arguments, for Stable-Baselines3."""

    def __init__(
        self,
        traces: TraceSet,
        arms: Sequence[Arm],
        count: int,
        price: float | str,
        cost_model: CostModel | None = None,
        seed: int = 0,
    ) -> None:
        env = RouterReplayVectorEnv(count, traces, list(map(str, arms)), price, cost_model)
        super().__init__(env, seed)
