"""What every policy is: something that chooses, asked the way Stable-Baselines3 asks.

    action, state = policy.predict(observation, state, episode_start, deterministic)

The decoder, the environments, replay and SB3's own `evaluate_policy` all call `predict`, so a fixed
arm, a threshold and a trained network are interchangeable. What goes in and comes out:

| | observation (float32) | action |
|---|---|---|
| router | `signals [s]`, `hidden [d]` (`decoding.observers.observation`) | index into `arms` |
| scheduler | `users [K, F]`, `cell [C]` (`envs.scheduler.observation`) | see below |

A batch has one more axis in front of every array, and answers with one more. A scheduler's action
is that of its environment: draft lengths int64 `[K]`, or float32 in [-1, 1]: beliefs `[K]`, or
lengths and shares `[2 K]` (`policies.schedulers.learned`). Schedulers by rule read the numbers of
the round itself and what was accepted, and answer with a plan (`policies.schedulers.rules`).

To write a router, derive from `Policy`: set `name`, `arms` and `observes`, and write `choose`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm


class Policy(ABC):
    """Chooses an arm each round.

    A subclass sets the attributes and writes `choose`, always for a batch; `predict` adds and
    removes the leading axis.

    Attributes:
        name: How tables call it.
        arms: What it chooses from; an action is an index into this.
        observes: Whether it reads observations. The decoder skips building them where it is False.
        reads_states: Whether it reads the target's hidden state. Traces that hold none refuse such
            a policy.
        reads_confidence: Whether it reads how sure the target was. Published traces do not hold
            that, and refuse such a policy.
        levels: What it chooses from a second time, while an arm drafts; none decides once a round
            (`draftgym.decoding.observers.two_stage`).
        watches: Whether it is asked after every drafted token whether to go on
            (`draftgym.decoding.observers.watching`). Traces do not hold what it is told.
    """

    name: str
    arms: tuple[Arm, ...]
    observes: bool
    reads_states: bool = False
    reads_confidence: bool = False
    levels: tuple[float, ...] = ()
    watches: bool = False

    @abstractmethod
    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """Actions `[count]`.

        Args:
            observation: Arrays with a leading axis of length `count`; may be empty if the policy
                does not observe.
            count: How many actions.
            deterministic: Whether a policy that samples should take its likeliest action.
        """

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """An action and the next state, as SB3's `PolicyPredictor`.

        Args:
            observation: One observation of the router environment (`signals [s]`, `hidden [d]`), a
                batch of them (`signals [n, s]`, ...), or an empty dict where `observes` is False.
            state: Handed back as it came: what a policy remembers of an episode is in its
                observations, and what it learns from them (a bandit) it keeps in itself.
            episode_start: Ignored for the same reason.
            deterministic: See `choose`.

        Returns:
            An int for a single observation, int64 `[n]` for a batch; and `state`.
        """
        count = batch_size(observation)
        if count is not None:
            return self.choose(observation, count, deterministic), state
        single = {key: np.asarray(value)[None] for key, value in observation.items()}
        return int(self.choose(single, 1, deterministic)[0]), state


def batch_size(observation: Mapping[str, Any]) -> int | None:
    """Length of the leading axis, or None for a single observation.

    Both parts of an observation are vectors, so a second axis means a batch.
    """
    for value in observation.values():
        shape = np.shape(value)
        return shape[0] if len(shape) == 2 else None
    return None
