"""Batches of episodes on workers of Ray, as one `gymnasium.vector.VectorEnv`.

    make = lambda: gym.make_vec("draftgym/RouterReplay-v0", 16, traces="/shared/traces")
    env = RayVectorEnv(make, workers=4)             # 64 episodes
    PPO("MultiInputPolicy", SB3VecEnv(env)).learn(100_000)

A worker that dies is started again, here or on another machine. Its episodes are truncated: their
last observation is the last that was seen, `final_info` says `worker_lost`, and others begin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.workers.cluster import connect

Make = Callable[[], VectorEnv[Any, Any, Any]]


class EnvHost:
    """The actor: owns a batch of episodes.

    Args:
        make: Makes them; what the user can mend comes back as a value.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._env: VectorEnv[Any, Any, Any] | None = None

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """What a method of the environment gives, or the `DraftgymError` that it raises.

        A step of episodes that another process played, which is gone, gives None.
        """
        try:
            if self._env is None:
                if method == "step":
                    return None
                self._env = self._make()
            if method == "spaces":
                env = self._env
                mode = env.metadata.get("autoreset_mode")
                return env.num_envs, env.single_observation_space, env.single_action_space, mode
            return getattr(self._env, method)(*arguments, **named)
        except DraftgymError as error:
            return error


class RayVectorEnv(VectorEnv[Any, Any, Any]):
    """Episodes of several workers, stepped together.

    Args:
        make: Makes the batch of one worker, live or replayed, in the worker's process: a vector
            environment whose finished episodes begin anew in the same step
            (`AutoresetMode.SAME_STEP`). It is pickled; what it needs must be there on every
            machine.
        workers: How many.
        address: Of the cluster: see `--ray`. A connection that this process has is kept.
        cpus: Cores of a worker.
        gpus: Accelerators of a worker, perhaps a share of one.

    Attributes:
        lost: Workers lost so far.

    Raises:
        DraftgymError: No cluster, what `make` raises, or another autoreset mode.
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it as an instance variable
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        make: Make,
        workers: int,
        address: str = "auto",
        cpus: float = 1.0,
        gpus: float = 0.0,
    ) -> None:
        if workers < 1:
            raise DraftgymError(f"{workers} workers play nothing", "give one at least")
        self._ray, self.lost = connect(address), 0
        options = {"num_cpus": cpus, "num_gpus": gpus}
        kind = self._ray.remote(max_restarts=-1, max_task_retries=-1, **options)(EnvHost)
        self.actors = [kind.remote(make) for _ in range(workers)]
        told = self._get([actor.call.remote("spaces") for actor in self.actors])
        if any(mode != AutoresetMode.SAME_STEP for *_, mode in told):
            raise DraftgymError(
                f"episodes begin anew by {told[0][-1]}, not in the same step",
                "make them with vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP}",
            )
        self._sizes = [size for size, *_ in told]
        self.num_envs = sum(self._sizes)
        _, self.single_observation_space, self.single_action_space, _ = told[0]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        ends = np.cumsum(self._sizes).tolist()
        self._rows = [slice(end - size, end) for size, end in zip(self._sizes, ends, strict=True)]
        self._seen: list[Any] = [None] * workers  # the last observation of each

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begins episodes anew; episode i of all has the seed `seed + i`.

        Args:
            seed: A number, or one for each episode; None goes on drawing.
            options: `reset_mask` says which episodes; the rest is what the workers' own take.
        """
        if isinstance(seed, int | np.integer):
            self._np_random, self._np_random_seed = np_random(int(seed))
            seed = [int(seed) + index for index in range(self.num_envs)]
        mask = (options or {}).get("reset_mask")
        calls: dict[int, Any] = {}
        for index, (actor, rows) in enumerate(zip(self.actors, self._rows, strict=True)):
            told = dict(options or {})
            if mask is not None:
                told["reset_mask"] = np.asarray(mask)[rows]
                if not told["reset_mask"].any():
                    continue
            seeds = None if seed is None else list(seed[rows])
            calls[index] = actor.call.remote("reset", seed=seeds, options=told or None)
        infos: list[dict[str, Any]] = [{} for _ in self.actors]
        for index, answer in zip(calls, self._get(list(calls.values())), strict=True):
            self._seen[index], infos[index] = answer
        return self._together(), joined(infos, self._sizes)

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Plays a step of every episode; finished ones begin anew at once."""
        actions = np.asarray(actions)
        calls = [  # a step that was half done must not be done again
            actor.call.options(max_task_retries=0).remote("step", actions[rows])
            for actor, rows in zip(self.actors, self._rows, strict=True)
        ]
        parts = [self._outcome(index, call) for index, call in enumerate(calls)]
        self._seen = [part[0] for part in parts]
        rewards, terminated, truncated = (
            np.concatenate([part[kind] for part in parts]) for kind in (1, 2, 3)
        )
        infos = joined([part[4] for part in parts], self._sizes)
        return self._together(), rewards, terminated, truncated, infos

    def close_extras(self, **_: Any) -> None:
        """Ends the workers."""
        for actor in self.actors:
            with suppress(Exception):
                self._ray.kill(actor)

    def _outcome(self, index: int, call: Any) -> tuple[Any, ...]:
        """What a worker's step gave; where it is gone, the end of its episodes."""
        outcome: tuple[Any, ...] | None = None
        with suppress(self._ray.exceptions.RayActorError):
            outcome = self._get(call)
        if outcome is not None:
            return outcome
        self.lost += 1
        count, seen = self._sizes[index], self._seen[index]
        seeds = self.np_random.integers(2**31, size=count).tolist()
        again, told = self._get(self.actors[index].call.remote("reset", seed=seeds))
        final = np.full(count, None, object)
        for place, one in enumerate(
            iterate(batch_space(self.single_observation_space, count), seen)
        ):
            final[place] = one
        everybody = np.ones(count, np.bool_)
        lost = {"worker_lost": everybody, "_worker_lost": everybody}
        ended = {"final_obs": final, "final_info": lost}
        infos = told | ended | {f"_{name}": everybody for name in ended}
        return again, np.zeros(count), ~everybody, everybody, infos

    def _get(self, calls: Any) -> Any:
        """What became of calls; raises what the user can mend."""
        answers = self._ray.get(calls)
        for answer in answers if isinstance(calls, list) else [answers]:
            if isinstance(answer, DraftgymError):
                raise answer
        return answers

    def _together(self) -> Any:
        """The last observations of all episodes, in arrays of their own."""
        space = self.single_observation_space
        each = [
            one
            for size, seen in zip(self._sizes, self._seen, strict=True)
            for one in iterate(batch_space(space, size), seen)
        ]
        room: Any = create_empty_array(space, self.num_envs)
        return concatenate(space, each, room)


def joined(infos: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Information of batches side by side, in Gymnasium's form.

    Args:
        infos: Of each batch: arrays `[n, ...]` by name with masks `_name`, or facts again.
        sizes: Episodes of each.

    Returns:
        The same of all; 0 or None, and a false mask, where a batch says nothing.
    """
    told: dict[str, Any] = {}
    for name in dict.fromkeys(name for info in infos for name in info if name[0] != "_"):
        values = [info.get(name) for info in infos]
        first = next(value for value in values if value is not None)
        if isinstance(first, dict):
            told[name] = joined([value or {} for value in values], sizes)
        else:
            told[name] = np.concatenate(
                [
                    np.full((size, *first.shape[1:]), _nothing(first), first.dtype)
                    if value is None
                    else value
                    for value, size in zip(values, sizes, strict=True)
                ]
            )
        masks = [info.get(f"_{name}") for info in infos]
        told[f"_{name}"] = np.concatenate(
            [
                np.zeros(size, np.bool_) if mask is None else mask
                for mask, size in zip(masks, sizes, strict=True)
            ]
        )
    return told


def _nothing(like: NDArray[Any]) -> Any:
    """What stands where there is nothing."""
    return None if like.dtype == object else like.dtype.type()
