"""Vector environments of Gymnasium as Stable-Baselines3 wants them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

Stepped = TypeVar("Stepped", bound=VectorEnv[Any, Any, Any])


class SB3VecEnv(VecEnv, Generic[Stepped]):
    """A `gymnasium.vector.VectorEnv` behind Stable-Baselines3's interface.

    Information of single steps is left out, for SB3 wants a dictionary for each episode; `env` has
    it. Returns and lengths of finished episodes are told as SB3's `Monitor` does, and where one
    ended because a worker was lost (`draftgym.envs.on_ray`).

    Args:
        env: Observations are dictionaries; finished episodes begin anew in the same step.
        seed: Seed of the first reset; None for none.

    Raises:
        ValueError: Finished episodes of the environment begin anew at another time.
    """

    def __init__(self, env: Stepped, seed: int | None = None) -> None:
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise ValueError(f"{env} does not begin finished episodes anew in the same step")
        self.env, self.render_mode = env, None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.seed(seed)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the environment's."""
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds the next reset."""
        self._seed = seed
        return [seed] * self.num_envs

    def reset(self) -> VecEnvObs:
        """Begins every episode anew; a seed counts once."""
        self._return, self._length = np.zeros((2, self.num_envs))
        self._since = time.perf_counter()
        observation, _ = self.env.reset(seed=self._seed)
        self._seed = None
        return dict(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Takes the actions `[n, ...]`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Plays a step of every episode."""
        observation, rewards, terminated, truncated, told = self.env.step(self._actions)
        self._return += rewards
        self._length += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done, seconds = terminated | truncated, round(time.perf_counter() - self._since, 6)
        for index in np.flatnonzero(done).tolist():
            length = int(self._length[index])
            infos[index] = {
                "terminal_observation": told["final_obs"][index],
                "TimeLimit.truncated": bool(truncated[index] and not terminated[index]),
                "episode": {"r": float(self._return[index]), "l": length, "t": seconds},
            }
            if "worker_lost" in told["final_info"]:
                infos[index]["worker_lost"] = bool(told["final_info"]["worker_lost"][index])
        self._return[done] = self._length[done] = 0
        return dict(observation), rewards.astype(np.float32), done, infos

    def snapshot(self) -> dict[str, Any]:
        """Where all episodes stand, to be kept."""
        return {"env": self.env.snapshot(), "told": (self._return, self._length)}  # type: ignore[attr-defined]

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Puts the episodes where these stand; no reset is needed."""
        self.env.restore(snapshot["env"])  # type: ignore[attr-defined]
        self._return, self._length = snapshot["told"]
        self._since = time.perf_counter()

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of the environment, once per asked episode."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute for all episodes: they share it."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of the environment, once."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """Never: there are no single environments to wrap."""
        return [False for _ in self._get_indices(indices)]

    def _get_indices(self, indices: Any) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices
