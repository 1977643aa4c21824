"""Trains a router by regression on what every arm would have done (ours, beyond WhiFlash).

    $ draftgym train-regression --traces runs/traces --arms eagle3:2 dflash:2 ngram:8 plain
    $ draftgym evaluate --policies runs/advantage

WhiFlash-Neural compares the tokens of two arms. Here any number of arms is compared by what counts
in the long run, tokens less what their time is worth (see `draftgym.agents.router.neural` for the
price):

    advantage of an arm = tokens - price * seconds, less the mean of that over all arms

Traces know it for all arms at once, catching up at the true backlog included, so it is learned by
regression, one output per arm, and acting takes the largest: the ordinary router network and its
exported folder. The advantage is that of one round; that a long-idle drafter grows staler is seen
in its signals, not foreseen.

What a router observes depends on what it did before. So the examples come from its own walks: first
at random, then by the network fitted so far, all kept (as DAgger does, arXiv 1011.0686). The price
is each time the speed that this network achieves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from draftgym.agents.common.settings import RouterEncoder
from draftgym.agents.router.args import offered_arms
from draftgym.agents.router.regression import (
    Examples,
    Fit,
    RegressionArgs,
    fit,
    train_and_export,
)
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import signal_names
from draftgym.policies.base import Policy
from draftgym.policies.folder import PolicyTarget
from draftgym.policies.routers.learned import LearnedPolicy, RouterNetwork, save_learned_policy
from draftgym.policies.routers.rules import RandomPolicy
from draftgym.rollouts.replay.play import walk_single_arms
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, kw_only=True)
class AdvantageArgs(RegressionArgs, RouterEncoder):
    """Train a router by regression on traces.

    Attributes:
        arms: What the router chooses from. Default: as of `draftgym train-router`.
        categories: Train on these categories of prompts alone.
        out: Folder of the trained policy.
        sweeps: Times that the router walks the texts itself, after the random walks.
        walks: Walks over every text in a sweep.
        stray: Share of the rounds of the router's own walks that take a random arm, so that it
            also learns how to go on from there.
    """

    arms: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    out: Path = Path("runs/advantage")
    sweeps: int = 3
    walks: int = 4
    stray: float = 0.1


@dataclass(frozen=True)
class Rollout:
    """Rounds of a policy, with what every arm would have done in each.

    Attributes:
        signals: What was observed `[n, s]`.
        rows: Where they began, among the rows of all texts `[n]`.
        committed: Tokens by arm `[n, A]`.
        seconds: Cost by arm, catching up included `[n, A]`.
        speed: Tokens per second of the policy.
    """

    signals: NDArray[np.float32]
    rows: NDArray[np.int64]
    committed: NDArray[np.int64]
    seconds: NDArray[np.float64]
    speed: float


@dataclass(frozen=True)
class FittedRouter:
    """A fitted router.

    Attributes:
        network: Predicts each arm's advantage.
        price: Tokens per second that a second was taken to be worth.
        fitted: How well it predicts on held-out texts.
        speeds: Tokens per second on the training texts after each sweep.
    """

    network: RouterNetwork
    price: float
    fitted: Fit
    speeds: list[float]


def train_advantage(args: AdvantageArgs) -> LearnedPolicy:
    """Walks and fits in turn, exports; returns the policy.

    Raises:
        DraftgymError: Bad settings, no traces, held-out prompts, arms that were not traced.
    """
    _check(args)
    arms = tuple(map(parse_arm, args.arms))

    def fit_policy(train: TraceSet, validation: TraceSet) -> tuple[LearnedPolicy, dict[str, Any]]:
        choice = arms or offered_arms(train)
        trained = fit_router(train, validation, choice, args)
        policy = LearnedPolicy(trained.network, choice, args.out.name, exploration_rate=0.0)
        return policy, _report(policy, trained, validation)

    def save(
        policy: LearnedPolicy, target: PolicyTarget, folder: Path, provenance: Mapping[str, Any]
    ) -> None:
        rate = policy.exploration_rate
        save_learned_policy(policy.network, policy.arms, target, folder, provenance, rate)

    return train_and_export(args, arms, fit_policy, save, args.categories)


def fit_router(
    train: TraceSet, validation: TraceSet, arms: Sequence[Arm], args: AdvantageArgs
) -> FittedRouter:
    """Random walks, a fit, and then `args.sweeps` times own walks and another fit."""
    rng = np.random.default_rng(args.seed)
    price = float(walk_single_arms(train, arms).speeds.max())
    behaviour: Policy = RandomPolicy(arms, args.seed)
    learning: list[Rollout] = []
    checking: list[Rollout] = []
    speeds = []
    for sweep in range(args.sweeps + 1):
        stray = args.stray if sweep else 0.0
        learning += [roll_out(train, behaviour, stray, rng) for _ in range(args.walks)]
        checking += [roll_out(validation, behaviour, stray, rng) for _ in range(args.walks)]
        torch.manual_seed(args.seed + sweep)
        hidden = train.texts[0].hidden.shape[1]
        sizes = (len(signal_names(arms)), hidden, len(arms), args.width, args.neck, args.dropout)
        network = RouterNetwork(*sizes)
        learned, checked = (
            as_examples(learning, train, price),
            as_examples(checking, validation, price),
        )
        fitted = fit(network, learned, checked, args.fitting, args.seed + sweep)
        behaviour, used = LearnedPolicy(network, arms), price
        price = roll_out(train, behaviour).speed
        speeds.append(price)
    return FittedRouter(network, used, fitted, speeds)


def roll_out(
    traces: TraceSet,
    policy: Policy,
    stray: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Rollout:
    """Plays every text once and keeps what every arm would have done on the way.

    Args:
        traces: The texts.
        policy: Who chooses, its best action each time.
        stray: Share of the rounds that take a random arm instead.
        rng: Draws these; needed where `stray` is not zero.
    """
    count = sum(len(text) > 0 for text in traces.texts)
    replay = Replay(traces, policy.arms, count)
    kept: list[list[NDArray[Any]]] = []
    tokens, seconds = 0, 0.0
    going = np.ones(count, dtype=np.bool_)
    while going.any():
        observation = replay.observe()
        actions, _ = policy.predict(observation, deterministic=True)
        if rng is not None and stray:
            random = rng.integers(len(policy.arms), size=count)
            actions = np.where(rng.random(count) < stray, random, actions)
        facts = (observation["signals"], replay.rows, *replay.options())
        kept.append([fact[going] for fact in facts])
        played = replay.step(actions)  # finished episodes stay where they are
        tokens += int(played.committed[going].sum())
        seconds += float(played.seconds[going].sum())
        going &= ~played.done
    signals, rows, committed, costs = map(np.concatenate, zip(*kept, strict=True))
    return Rollout(signals, rows, committed, costs, tokens / seconds)


def as_examples(walked: Sequence[Rollout], traces: TraceSet, price: float) -> Examples:
    """Observations with the advantage of every arm.

    Args:
        walked: Walks over these traces.
        traces: The texts.
        price: Tokens that a second is worth.
    """
    committed = np.concatenate([one.committed for one in walked])
    seconds = np.concatenate([one.seconds for one in walked])
    worth = committed - price * seconds
    advantage = worth - worth.mean(1, keepdims=True)
    signals = torch.from_numpy(np.concatenate([one.signals for one in walked]))
    rows = torch.from_numpy(np.concatenate([one.rows for one in walked]))
    # Kept once and looked up: many walks pass the same rows.
    states = [text.hidden for text in traces.texts if len(text)]
    hidden = torch.from_numpy(np.concatenate(states, dtype=np.float32))
    return Examples(
        lambda batch: (signals[batch], hidden[rows[batch]]), torch.from_numpy(advantage).float()
    )


def _report(policy: LearnedPolicy, trained: FittedRouter, validation: TraceSet) -> dict[str, Any]:
    alone = walk_single_arms(validation, policy.arms).speeds
    return {
        "validation_r2": round(trained.fitted.r2, 4),
        "epochs": trained.fitted.epochs,
        "price_tokens_per_second": round(trained.price, 3),
        "train_tokens_per_second_by_sweep": [round(speed, 2) for speed in trained.speeds],
        "validation_tokens_per_second": {
            "routed": round(roll_out(validation, policy).speed, 2),
            "best single arm": round(float(alone.max()), 2),
            "which": str(policy.arms[int(alone.argmax())]),
        },
    }


def _check(args: AdvantageArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is read."""
    args.check()
    if args.sweeps < 0 or args.walks < 1 or args.width < 1:
        raise DraftgymError(
            "a router needs walks and features", "give --walks and --width 1 or more, --sweeps 0"
        )
    if not 0 <= args.stray <= 1:
        raise DraftgymError(f"--stray is {args.stray}", "give a share between 0 and 1")
    if len(args.arms) == 1 or len(set(args.arms)) < len(args.arms):
        raise DraftgymError("--arms gives nothing to choose from", "name two or more, each once")


def main(arguments: Sequence[str]) -> None:
    """`draftgym train-regression`."""
    train_advantage(
        tyro.cli(
            AdvantageArgs, args=arguments, description=__doc__, prog="draftgym train-regression"
        )
    )
