"""Stable-Baselines3 agents: fresh (for routers), resumed, or going on from another run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch.optim import AdamW

from draftgym.agents.common.hyperparameters import RouterDQN, RouterEncoder, RouterPPO
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.network import RouterExtractor
from draftgym.decoding.errors import DraftgymError

Agent = PPO | DQN
KINDS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "dqn": DQN, "sac": SAC}
"""Algorithms by the name that users write."""
ENCODER = tuple(field.name for field in fields(RouterEncoder))
"""Hyperparameters that are the encoder's."""


def fresh_agent(args: RouterArgs, env: VecEnv) -> Agent:
    """An untrained agent."""
    if args.algorithm == "dqn":
        return DQN("MultiInputPolicy", env, seed=args.seed, device="cpu", **_dqn(args.dqn))
    settings = _ppo(_ppo_of(args))
    return PPO("MultiInputPolicy", env, seed=args.seed, device="cpu", **settings)


def resumed_agent(saved: Path, algorithm: str, env: VecEnv, seed: int) -> Any:
    """The agent of an interrupted run, with the hyperparameters it was started with.

    Raises:
        DraftgymError: The file is damaged, or another agent's.
    """
    agent = _load(saved, algorithm, env)
    # A resumed run must not replay its first texts and choices.
    agent.set_random_seed(seed + agent.num_timesteps)
    return agent


def inherited_agent(saved: Path, args: RouterArgs, env: VecEnv) -> Agent:
    """An agent that goes on from another run's weights, with hyperparameters of its own."""
    made = _dqn(args.dqn) if args.algorithm == "dqn" else _ppo(_ppo_of(args))
    del made["policy_kwargs"]  # the network is the other run's
    agent: Agent = _load(saved, args.algorithm, env, **made)
    agent.num_timesteps = 0
    agent.set_random_seed(args.seed)
    return agent


def _ppo_of(args: RouterArgs) -> RouterPPO:
    return args.live_ppo if args.live else args.ppo


def _ppo(settings: RouterPPO) -> dict[str, Any]:
    made = asdict(settings)
    heads = {"net_arch": {"pi": [], "vf": [settings.width]}}
    return _common(made) | {"policy_kwargs": _policy(made) | heads}


def _dqn(settings: RouterDQN) -> dict[str, Any]:
    made = asdict(settings)
    kwargs = _policy(made) | {"net_arch": []}
    return _common(made) | {"policy_kwargs": kwargs, "train_freq": 1}


def _common(made: dict[str, Any]) -> dict[str, Any]:
    """SB3's own arguments; the step size falls linearly to zero."""
    rate = made["learning_rate"]
    ours = {"n_envs", "weight_decay", "learning_rate", *ENCODER}
    kept = {key: value for key, value in made.items() if key not in ours}
    return kept | {"learning_rate": falling(rate)}


def falling(start: float) -> Callable[[float], float]:
    """A step size that falls linearly to zero, in a form that SB3 can save."""
    return _Falling(start)


class _Falling:
    """A schedule that falls linearly; a class, so that SB3 can save it."""

    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, remaining: float) -> float:
        return self.start * remaining


def _policy(made: dict[str, Any]) -> dict[str, Any]:
    """Arguments for `MultiInputPolicy`: the deployable encoder, then a linear head of scores."""
    return {
        "features_extractor_class": RouterExtractor,
        "features_extractor_kwargs": {name: made[name] for name in ENCODER},
        "optimizer_class": AdamW,
        "optimizer_kwargs": {"weight_decay": made["weight_decay"]},
    }


def _load(path: Path, algorithm: str, env: VecEnv, **changes: Any) -> Any:
    try:
        agent = KINDS[algorithm].load(path, env=env, device="cpu", **changes)
    except Exception as error:  # SB3 raises many kinds for a damaged or foreign zip
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DraftgymError(
            f"cannot resume from {path}: {reason}",
            "its arms, target or algorithm differ from these settings, or it is damaged; name "
            "another --run",
        ) from error
    return agent
