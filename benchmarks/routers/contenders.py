"""Who routes in the comparison: baselines that need no training, and routers that learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from draftgym.agents.router.advantage import AdvantageArgs, train_advantage
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.neural import NeuralArgs, train_neural
from draftgym.agents.router.train import train_router
from draftgym.decoding.arms import Arm
from draftgym.decoding.decoder import RoutingPolicy
from draftgym.policies.folder import BODY
from draftgym.policies.routers.bandits import TimedBandit, TokenBandit
from draftgym.policies.routers.entropy import EntropyPolicy
from draftgym.policies.routers.fixed import FixedPolicy
from draftgym.policies.routers.learned import load_learned_policy
from draftgym.policies.routers.neural import load_neural_policy
from draftgym.policies.routers.random import RandomPolicy
from draftgym.rollouts.replay.tune_entropy import tune_pair
from draftgym.rollouts.traces.trace import TraceSet

Routers = dict[str, list[RoutingPolicy]]
"""Policies by name, one per seed; one where no seed matters."""
Pair = tuple[Arm, Arm]


@dataclass(frozen=True)
class School:
    """What routers are trained on.

    Attributes:
        folder: Folder of traces of training prompts.
        traces: The same, loaded.
        arms: What they choose from.
        rounds: Rounds of reinforcement learning.
        seeds: How many of each.
        run: Where trained routers are kept; what is there is not trained again.
        threads: CPU threads; None for all cores.
    """

    folder: Path
    traces: TraceSet
    arms: tuple[Arm, ...]
    rounds: int
    seeds: int
    run: Path
    threads: int | None


def single_arms(school: School) -> Routers:
    """Every arm alone."""
    return {str(arm): [FixedPolicy(arm)] for arm in school.arms}


def simple_routers(school: School, pairs: Sequence[Pair]) -> Routers:
    """Baselines: no knowledge, bandits, and WhiFlash's two for some pairs of arms."""
    seeds, origin = range(school.seeds), school.traces.origin
    made: Routers = {
        "random": [RandomPolicy(school.arms, seed) for seed in seeds],
        "ucb": [TokenBandit(school.arms)],
        "ucb-time": [TimedBandit(school.arms, origin.cost_model)],
    }
    for pair in dict.fromkeys(pairs):
        name = "/".join(map(str, pair))
        tuning = tune_pair(school.traces, pair, count=100)
        threshold = float(tuning.thresholds[tuning.best])
        made[f"entropy {name}"] = [EntropyPolicy(*pair, threshold=threshold)]
        made[f"neural {name}"] = [_neural(school, pair, seed) for seed in seeds]
    return made


def router_folder(run: Path, name: str, seed: int, categories: Sequence[str] = ()) -> Path:
    """Where a router is trained.

    Args:
        run: Folder of all of them.
        name: What figures call it, such as `ppo` or `neural eagle3:2/ngram:16`.
        seed: Its seed.
        categories: The only ones that it is trained on, if it is not all.
    """
    plain = name.replace(":", "").replace(" ", "-").replace("/", "-")
    return run / "-".join([plain, str(seed), *categories])


def _neural(school: School, pair: Pair, seed: int) -> RoutingPolicy:
    first, second = map(str, pair)
    out = router_folder(school.run, f"neural {first}/{second}", seed)
    if not (out / BODY).is_file():
        train_neural(
            NeuralArgs(traces=school.folder, first=first, second=second, out=out, seed=seed)
        )
    return load_neural_policy(out, school.traces.origin)


def learned_routers(school: School) -> Routers:
    """Routers that learn to choose among all arms."""
    return {
        name: [learned_router(school, name, seed) for seed in range(school.seeds)]
        for name in LEARNERS
    }


def learned_router(
    school: School, name: str, seed: int, categories: tuple[str, ...] = ()
) -> RoutingPolicy:
    """One of them, trained unless it is there already.

    Args:
        school: What it is trained on.
        name: One of `LEARNERS`.
        seed: Of everything random.
        categories: Train on these categories alone.
    """
    run = router_folder(school.run, name, seed, categories)
    return load_learned_policy(LEARNERS[name](school, run, seed, categories), school.traces.origin)


def _by_reinforcement(algorithm: str) -> Callable[[School, Path, int, tuple[str, ...]], Path]:
    def train(school: School, run: Path, seed: int, categories: tuple[str, ...]) -> Path:
        settings = RouterArgs(
            traces=school.folder,
            algorithm=algorithm,
            arms=tuple(map(str, school.arms)),
            rounds=school.rounds,
            categories=categories,
            run=run,
            seed=seed,
            threads=school.threads,
        )
        return train_router(settings)  # goes on where it stopped; a finished run does nothing

    return train


def _by_regression(school: School, run: Path, seed: int, categories: tuple[str, ...]) -> Path:
    if not (run / BODY).is_file():
        arms = tuple(map(str, school.arms))
        train_advantage(
            AdvantageArgs(
                traces=school.folder, arms=arms, out=run, seed=seed, categories=categories
            )
        )
    return run


LEARNERS = {
    "ppo": _by_reinforcement("ppo"),
    "dqn": _by_reinforcement("dqn"),
    "advantage": _by_regression,
}
"""Routers that learn from all arms: reinforcement on the rounds, and regression on all outcomes."""
