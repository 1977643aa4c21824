"""Stable-Baselines3 environments that are arrays inside: what they all have in common."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class ArrayVecEnv(VecEnv):
    """n episodes that are stepped as array operations; there are no single environments.

    Args:
        count: Episodes, n.
        observation_space: Of one episode.
        action_space: Of one episode.
    """

    def __init__(
        self, count: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        self.render_mode = None
        super().__init__(count, observation_space, action_space)

    def reset(self) -> VecEnvObs:
        """Begins every episode anew."""
        self._return = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, dtype=np.int64)
        self._since = time.perf_counter()
        return dict(self._begin())

    def step_async(self, actions: NDArray[Any]) -> None:
        """Takes the actions `[n, ...]`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Plays a step of every episode; finished ones begin anew at once."""
        observation, rewards, done, truncated = self._play(self._actions)
        self._return += rewards
        self._length += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            finished = np.flatnonzero(done)
            self._close(finished, truncated, infos, observation)
            observation = self._restart(finished)
        return dict(observation), rewards.astype(np.float32), done, infos

    @abstractmethod
    def _begin(self) -> Mapping[str, NDArray[Any]]:
        """Begins every episode; returns observations."""

    @abstractmethod
    def _play(
        self, actions: NDArray[Any]
    ) -> tuple[Mapping[str, NDArray[Any]], NDArray[np.float64], NDArray[np.bool_], bool]:
        """Plays a step: observations, rewards, who is done, and whether by a limit of steps."""

    @abstractmethod
    def _restart(self, finished: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
        """Begins these episodes anew; returns observations of all."""

    def _close(
        self,
        finished: NDArray[np.int64],
        truncated: bool,
        infos: list[dict[str, Any]],
        observation: Mapping[str, NDArray[Any]],
    ) -> None:
        """Says what SB3 wants to know of finished episodes."""
        seconds = round(time.perf_counter() - self._since, 6)
        for index in finished.tolist():
            length = int(self._length[index])
            infos[index] = {
                "terminal_observation": {key: value[index] for key, value in observation.items()},
                "TimeLimit.truncated": truncated,
                "episode": {"r": float(self._return[index]), "l": length, "t": seconds},
            }
        self._return[finished] = 0.0
        self._length[finished] = 0

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
