"""Many episodes as one `gymnasium.vector.VectorEnv`, for environments that are arrays inside.

    reset / step  ->  _play(actions)  ->  who is done: final_obs, final_info  ->  _begin(them)

Finished episodes begin anew in the same step (`AutoresetMode.SAME_STEP`), and information has the
form of Gymnasium's `SyncVectorEnv`: arrays over episodes, 0 or None where `_key` is false.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import Observation
from draftgym.envs.options import never_begun

Seeds = int | Sequence[int | None]
Facts = dict[str, Any]
"""Information by name: arrays `[n, ...]`, or facts again."""


class ArrayVectorEnv(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """n episodes that are stepped as array operations; there are no single environments.

    Args:
        num_envs: Episodes, n.
        observation_space: Of one episode.
        action_space: Of one episode.
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it as an instance variable
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._running = np.zeros(num_envs, bool)

    def reset(  # type: ignore[override]
        self, *, seed: Seeds | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins episodes anew.

        Args:
            seed: A number, or one for each episode; None goes on drawing.
            options: `reset_mask`, bool `[n]`, says which episodes; the others go on. The rest is
                what the single environment's `reset` takes, for all of them alike.

        Raises:
            DraftgymError: A mask or seeds of another size, or impossible options.
        """
        told = dict(options or {})
        mask = np.asarray(told.pop("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise DraftgymError(
                f"a reset_mask {mask.dtype} {mask.shape} of {self.num_envs} episodes",
                "give an array of bool, one for each episode, with one true at least",
            )
        if isinstance(seed, np.integer):
            seed = int(seed)
        if seed is not None:
            if isinstance(seed, Sequence) and len(seed) != self.num_envs:
                raise DraftgymError(
                    f"{len(seed)} seeds for {self.num_envs} episodes",
                    "give one for each episode, or a single number",
                )
            self._seed(seed, mask)
        begun = self._begin(np.flatnonzero(mask), told)
        self._running |= mask
        return self._observe(), masked(begun, mask)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Plays a step of every episode; finished ones begin anew at once.

        Args:
            actions: `[n, ...]`.

        Returns:
            Observations (of the new episode where one is finished), rewards float64 `[n]`,
            terminated and truncated `[n]`, and information: `final_obs` and `final_info` of who is
            finished, that of `reset` for the same, that of the step for the others.

        Raises:
            DraftgymError: Actions that are not in the action space, or an episode that was never
                begun with `reset`.
        """
        if not self._running.all():
            raise never_begun()
        actions = np.asarray(actions)
        if not self.action_space.contains(actions):
            raise DraftgymError(
                f"actions {actions.dtype} {actions.shape} that are not in {self.action_space}",
                "draw some with action_space.sample(), or scale your agent's output to it",
            )
        rewards, terminated, truncated, facts = self._play(actions)
        observation, done = self._observe(), terminated | truncated
        infos = masked(facts, ~done)
        if done.any():
            final = np.full(self.num_envs, None, object)
            finished = np.flatnonzero(done)
            for index in finished.tolist():
                final[index] = {key: value[index].copy() for key, value in observation.items()}
            told = {"final_obs": final, "final_info": facts} | self._begin(finished, {})
            infos |= masked(told, done)
            for key, value in self._observe(finished).items():
                observation[key][finished] = value
        return observation, rewards, terminated, truncated, infos

    @abstractmethod
    def _seed(self, seed: Seeds, mask: NDArray[np.bool_]) -> None:
        """Seeds these episodes; `seed` is a number, or one for each of all."""

    @abstractmethod
    def _begin(self, episodes: NDArray[np.int64], options: dict[str, Any]) -> Facts:
        """Begins these episodes (indices) anew; returns information of them."""

    @abstractmethod
    def _observe(self, episodes: NDArray[np.int64] | None = None) -> Observation:
        """Observations of these episodes (indices; None for all), in arrays of their own."""

    @abstractmethod
    def _play(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Facts]:
        """Plays a step: rewards, who is terminated, who truncated `[n]`, and information."""


class DrawingVectorEnv(ArrayVectorEnv):
    """One whose episodes draw, each with a generator of its own, and earn at a running price.

    Attributes:
        reward: What rounds are worth; a seed restarts its price.
    """

    reward: Any
    _generators: Sequence[np.random.Generator] = ()

    def _seed(self, seed: Seeds, mask: NDArray[np.bool_]) -> None:
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int) else seed
        drawn = list(self._drawing())
        for index, one in enumerate(seeds):
            if one is not None and mask[index]:
                drawn[index] = np_random(one)[0]
        self._generators = drawn
        self.reward.restart()

    def _drawing(self) -> Sequence[np.random.Generator]:
        """The generators, made by chance where nobody gave a seed."""
        if not self._generators:
            self._generators = [np_random()[0] for _ in range(self.num_envs)]
        return self._generators


def masked(facts: Facts, where: NDArray[np.bool_]) -> dict[str, Any]:
    """Information as Gymnasium wants it.

    Args:
        facts: Arrays `[n, ...]` by name, or facts again.
        where: Of which episodes it is `[n]`.

    Returns:
        The same, with 0 or None for the others, and `where` under `_key` for every key; nothing
        where it is of nobody.
    """
    infos: dict[str, Any] = {}
    if not where.any():
        return infos
    everybody = where.all()
    for key, value in facts.items():
        if isinstance(value, dict):
            infos[key] = masked(value, where)
        elif everybody:
            infos[key] = value
        else:
            nothing = None if value.dtype == object else value.dtype.type(0)
            rows = where.reshape(-1, *[1] * (value.ndim - 1))
            infos[key] = np.where(rows, value, nothing)
        infos[f"_{key}"] = where
    return infos
