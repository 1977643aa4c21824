"""Many servers as one `gymnasium.vector.VectorEnv`: what `gymnasium.make_vec` makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from draftgym.decoding.observers.observation import Observation
from draftgym.envs.load.settings import GOODPUT, ServerSettings
from draftgym.envs.options import check_options
from draftgym.envs.serving.env import (
    arm_masks,
    make_load,
    question_ids,
    request_facts,
    round_facts,
)
from draftgym.envs.serving.observation import serving_observation_space
from draftgym.envs.serving.reward import ServingReward
from draftgym.envs.vector import DrawingVectorEnv, Facts
from draftgym.policies.serving.observation import observe
from draftgym.rollouts.traces.trace import TraceSet


class ServingVectorEnv(DrawingVectorEnv):
    """`draftgym/Serving-v0` many times, stepped together.

    Server i plays what a `ServingEnv` (which has the sections on actions, observations, rewards and
    information) plays with the seed `seed + i`, but that all servers share one running price.
    `question_ids` are an array `[n, K]`; `tokens` are left out.

    Args:
        num_envs: Servers, n.
        traces, arms, server, objective, price: See `ServingEnv`.

    Attributes:
        load: The servers.
        reward: Of their rounds.
        tokens: Tokens committed since `forget_counts`.
        seconds: Time that their rounds took, of all servers together.
        request_rounds: Arms that were played since then.

    Raises:
        DraftgymError: Traces, arms, settings or objective cannot be.
    """

    def __init__(
        self,
        num_envs: int,
        traces: str | Path | TraceSet,
        arms: Sequence[str] | None = None,
        server: ServerSettings | None = None,
        objective: str = GOODPUT,
        price: float | str = GOODPUT,
    ) -> None:
        self.load = make_load(traces, arms, server, num_envs)
        self.reward = ServingReward(self.load, objective, price)
        self.forget_counts()
        places, texts = self.load.shape[1], self.load.texts
        space = spaces.MultiDiscrete(np.full(places, len(texts.arms)))
        super().__init__(num_envs, serving_observation_space(texts, places), space)

    def forget_counts(self) -> None:
        """Starts the counts anew."""
        self.tokens = self.seconds = self.request_rounds = 0.0

    def action_masks(self) -> NDArray[np.bool_]:
        """Which entries of the actions matter `[n, K * arms]`, for masking agents."""
        return arm_masks(self.load)

    def _begin(self, episodes: NDArray[np.int64], options: dict[str, Any]) -> Facts:
        check_options(options)
        self.load.reset(self._drawing(), episodes)
        return {}

    def _observe(self, episodes: NDArray[np.int64] | None = None) -> Observation:
        everything = observe(self.load)
        if episodes is None:
            return everything
        return {name: value[episodes] for name, value in everything.items()}

    def _play(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Facts]:
        ids = question_ids(self.load)
        played = self.load.step(actions)
        self.tokens += float(played.committed.sum())
        self.seconds += float(played.seconds.sum())
        self.request_rounds += float(played.deciding.sum()) * self.load.settings.copies
        rewards, never = self.reward(played), np.zeros(self.num_envs, bool)
        facts = round_facts(self.load, played) | request_facts(self.load)
        facts |= {"question_ids": ids, "price": np.full(self.num_envs, self.reward.price)}
        return rewards, self.load.done, never, facts
