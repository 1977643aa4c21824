"""Many replayed episodes as one Stable-Baselines3 environment."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from decoding.arms import Arm
from decoding.latency import CostModel
from envs.reward import RoundReward
from envs.spaces import router_spaces
from rollouts.replay import Replay, ReplayedRound
from rollouts.trace import TraceSet


class ReplayVecEnv(VecEnv):
    """Steps n episodes over traces as array operations.

    Every text is played once, in a random order, before any comes again.

    Args:
        traces: The texts.
        arms: What can be chosen.
        count: Episodes, n.
        price: See `envs.reward.RoundReward`.
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
        self.reward = RoundReward(price)
        self.render_mode = None
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

    def reset(self) -> VecEnvObs:
        """Begins every episode with a new text."""
        self.replay.start(np.arange(self.num_envs), self._next_texts(self.num_envs))
        self._return = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, dtype=np.int64)
        self._since = time.perf_counter()
        return dict(self.replay.observe())

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Takes the actions `[n]`."""
        self._actions = np.asarray(actions, dtype=np.int64)

    def step_wait(self) -> VecEnvStepReturn:
        """Plays the rounds; finished episodes begin a new text at once."""
        played = self.replay.step(self._actions)
        rewards = self.reward(played.committed, played.steps)
        self._count(played)
        self._return += rewards
        self._length += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        observation = self.replay.observe()
        if played.done.any():
            finished = np.flatnonzero(played.done)
            self._close(finished, infos, observation)
            self.replay.start(finished, self._next_texts(len(finished)))
            observation = self.replay.observe()
        return dict(observation), rewards.astype(np.float32), played.done, infos

    def _count(self, played: ReplayedRound) -> None:
        self.played += np.bincount(self._actions, minlength=len(self.played))
        self.tokens += float(played.committed.sum())
        self.steps += float(played.steps.sum())

    def _close(
        self,
        finished: NDArray[np.int64],
        infos: list[dict[str, Any]],
        observation: dict[str, NDArray[np.float32]],
    ) -> None:
        """Says what SB3 wants to know of finished episodes."""
        seconds = round(time.perf_counter() - self._since, 6)
        for index in finished.tolist():
            length = int(self._length[index])
            infos[index] = {
                "terminal_observation": {key: value[index] for key, value in observation.items()},
                "episode": {"r": float(self._return[index]), "l": length, "t": seconds},
            }
        self._return[finished] = 0.0
        self._length[finished] = 0

    def _next_texts(self, count: int) -> NDArray[np.int64]:
        while len(self._order) < count:
            more = self._rng.permutation(len(self.replay.texts))
            self._order = np.concatenate([self._order, more])
        texts, self._order = self._order[:count], self._order[count:]
        return texts

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of this object, once per asked episode."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute for all episodes: they share it."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of this object, once."""
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result] * len(list(self._get_indices(indices)))

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """Never: there are no single environments to wrap."""
        return [False] * len(list(self._get_indices(indices)))

    def _get_indices(self, indices: Any) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices
