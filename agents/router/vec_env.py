"""Many replayed episodes as one Stable-Baselines3 environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.agents.common.array_vec_env import ArrayVecEnv
from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.observation import Observation
from draftgym.envs.router.reward import Reward, RoundReward
from draftgym.envs.router.spaces import router_spaces
from draftgym.rollouts.replay.replay import Replay, ReplayedRound
from draftgym.rollouts.traces.trace import TraceSet


class ReplayVecEnv(ArrayVecEnv):
    """Steps n episodes over traces as array operations.

    Every text is played once, in a random order, before any comes again.

    Args:
        traces: The texts.
        arms: What can be chosen.
        count: Episodes, n.
        price: See `draftgym.envs.router.reward.RoundReward`.
        cost_model: None takes the traces' own.
        seed: Seed of the order of texts.

    Attributes:
        played: Rounds by arm since `forget_counts` `[A]`.
        tokens: Tokens committed since then.
        steps: Their time in target steps.
    """

    def __init__(
        self,
        traces: TraceSet,
        arms: Sequence[Arm],
        count: int,
        price: float | str,
        cost_model: CostModel | None = None,
        seed: int = 0,
    ) -> None:
        self.replay = Replay(traces, arms, count, cost_model)
        hidden = self.replay.texts[0].hidden.shape[1]
        observation_space, action_space = router_spaces(arms, hidden)
        self.reward: Reward = RoundReward(price)
        super().__init__(count, observation_space, action_space)
        self.seed(seed)
        self.forget_counts()

    def forget_counts(self) -> None:
        """Starts the counts anew."""
        self.played = np.zeros(len(self.replay.arms), dtype=np.int64)
        self.tokens = self.steps = 0.0

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds the order of texts."""
        self._rng = np.random.default_rng(seed)
        self._order = np.empty(0, dtype=np.int64)
        return [seed] * self.num_envs

    def _begin(self) -> Observation:
        self.replay.start(np.arange(self.num_envs), self._next_texts(self.num_envs))
        return self.replay.observe()

    def _play(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], bool]:
        played = self.replay.step(actions)
        rewards = self.reward(played.committed, played.steps, actions)
        self._count(actions, played)
        return self.replay.observe(), rewards, played.done, False

    def _restart(self, finished: NDArray[np.int64]) -> Observation:
        self.replay.start(finished, self._next_texts(len(finished)))
        return self.replay.observe()

    def _count(self, actions: NDArray[np.int64], played: ReplayedRound) -> None:
        self.played += np.bincount(actions, minlength=len(self.played))
        self.tokens += float(played.committed.sum())
        self.steps += float(played.steps.sum())

    def _next_texts(self, count: int) -> NDArray[np.int64]:
        while len(self._order) < count:
            more = self._rng.permutation(len(self.replay.texts))
            self._order = np.concatenate([self._order, more])
        texts, self._order = self._order[:count], self._order[count:]
        return texts
