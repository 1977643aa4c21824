"""Tiny routers in training, for tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file
from stable_baselines3 import DQN, PPO

import draftgym.agents.router.live
from draftgym.agents.common.settings import RouterDQN, RouterPPO
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.live import live_experience
from draftgym.agents.router.network import deployable_network
from draftgym.agents.router.train import (
    RouterTrainer,
    replayed_experience,
)
from draftgym.decoding.observers.observation import Observation
from draftgym.envs.router.live import RouterEnv
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.traces.file import read_traces

TINY = RouterPPO(n_envs=1, n_steps=16, batch_size=8, n_epochs=2, width=16)
TINY_DQN = RouterDQN(n_envs=4, buffer_size=64, learning_starts=8, batch_size=8, width=16)
MODES = {"live": {"live": True}, "ppo": {"live": False}, "dqn": {"live": False, "algorithm": "dqn"}}
Train = Callable[..., RouterArgs]


def weights_of(args: RouterArgs) -> dict[str, torch.Tensor]:
    """The exported weights of a run."""
    weights: dict[str, torch.Tensor] = load_file(args.run / "policy" / "policy.safetensors")
    return weights


def final_weights(args: RouterArgs) -> dict[str, torch.Tensor]:
    """The weights at the end of a run, which need not be the best ones."""
    return deployable_network(agent_of(args)).state_dict()


def rounds_of(args: RouterArgs) -> int:
    """Rounds that the saved agent has seen."""
    return int(PPO.load(args.run / "model.zip").num_timesteps)


def router_env(args: RouterArgs) -> RouterEnv:
    """The live environment of a run, bare."""
    return RouterEnv(
        target=draftgym.agents.router.live.load_target("patched"),
        drafters=draftgym.agents.router.live.load_drafters(None),  # type: ignore[arg-type]
        arms=args.arms,
        prompts=load_prompts(args.prompts),
        max_new_tokens=args.max_new_tokens,
        latency=draftgym.agents.router.live.load_cost_model(None, {}),  # type: ignore[arg-type]
    )


def agent_of(args: RouterArgs) -> PPO | DQN:
    """The agent that a run with these settings begins with."""
    experience = (
        live_experience(args) if args.live else replayed_experience(read_traces(args.traces), args)
    )
    return RouterTrainer(args, experience, args.run).agent


def observations(env: RouterEnv, count: int) -> Observation:
    """A batch of random ones."""
    rng = np.random.default_rng(0)
    signals, hidden = (env.observation_space[key].shape[0] for key in ("signals", "hidden"))  # type: ignore[index]
    return {
        "signals": rng.uniform(0, 3, (count, signals)).astype(np.float32),
        "hidden": rng.normal(size=(count, hidden)).astype(np.float32),
    }
