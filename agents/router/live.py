"""Live decoding as what a router learns from: the one part of training that loads models."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import Experience
from draftgym.decoding.arms import default_arms, parse_arm
from draftgym.decoding.costs.calibration import load_cost_model
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.model.target import load_target
from draftgym.drafters.loading import load_drafters
from draftgym.envs.router.live import RouterEnv
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.prompts.sets import as_prompts


class CountedRounds(gym.Wrapper[Any, Any, Any, Any]):
    """A router environment that counts its rounds as `RouterReplayVectorEnv` does."""

    def __init__(self, env: RouterEnv) -> None:
        super().__init__(env)
        self.arms = len(env.arms)
        self.forget_counts()

    def forget_counts(self) -> None:
        """Starts the counts anew."""
        self.played = np.zeros(self.arms, dtype=np.int64)
        self.tokens = self.steps = 0.0

    def step(self, action: Any) -> Any:
        """Plays and counts a round."""
        outcome = self.env.step(action)
        info = outcome[-1]
        self.played[int(action)] += 1
        self.tokens += info["committed"]
        self.steps += info["target_steps"]
        return outcome


def live_experience(args: RouterArgs) -> Experience:
    """One episode of real decoding at a time; loads the target and the drafters.

    Raises:
        DraftgymError: Anything that cannot be loaded, or arms without a drafter.
    """
    prompts = as_prompts(args.prompts)
    target = load_target(args.target, args.dtype, args.threads, args.device, args.backend)
    fitted = fit_prompts(target, prompts, args.max_new_tokens, args.skip_long_prompts)
    drafters = load_drafters(target, args.drafters)
    latency: str | CostModel = args.latency
    if latency == "calibrated":
        arms = tuple(map(parse_arm, args.arms)) or default_arms(drafters)
        latency = load_cost_model(target, drafters, arms)
    env = RouterEnv(
        target=target,
        drafters=drafters,
        arms=args.arms or None,
        prompts=fitted.prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        latency_price=args.latency_price,
        latency=latency,
    )
    counted = CountedRounds(env)
    return Experience(
        DummyVecEnv([lambda: Monitor(counted)]),
        counted,
        env.arms,
        target,
        target.precision.dtype,
        tuple(env.drafters),
        env.cost_model,
        None,
        "of live decoding",
    )
