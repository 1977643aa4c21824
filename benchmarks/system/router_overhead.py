"""What routing costs: decision and environment bookkeeping, beside the round they belong to.

    $ python -m benchmarks.system.router_overhead
    $ python -m benchmarks.system.router_overhead --prompts 10 --dtype float32 --json overhead.json

Real decoding through `RouterEnv` with a learned policy. In each round the policy decides and its
decision is timed, but the arms are played in turn, so that every arm (the cheapest ones have the
largest share) meets the same texts and the same drift of the machine.

    round        catching up, drafting, verifying, committing (`play_round`)
    observe      building the observation
    predict      the policy's network
    bookkeeping  the rest of `RouterEnv.step`: reward, running means, info
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.report import Json, Table, titled
from benchmarks.results import Result, TargetOptions, check, finish
from draftgym.decoding.arms import PLAIN, Arm, default_arms
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import Observation, signal_names
from draftgym.decoding.round import RoundRecord
from draftgym.envs.router.live import RouterEnv
from draftgym.policies.registry import make_policy, shipped_router
from draftgym.policies.routers.learned import LearnedPolicy, RouterNetwork
from draftgym.rollouts.prompts.sets import interleave_categories, load_prompts

LIMIT = 0.03
"""Share of a round that routing may take."""


@dataclass(frozen=True, kw_only=True)
class OverheadArgs(TargetOptions):
    """What to measure.

    Attributes:
        prompts: Held-out prompts, taken from all categories in turn.
        max_new_tokens: Tokens per text at most.
        warm_up: Rounds at the start that do not count.
        policy: Folder of a trained router; default: the shipped one, else an untrained network of
            the same size.
        dtype: auto, float32, bfloat16 or float16.
        seed: Seed of the environment.
        json: Write the figures to this file.
    """

    prompts: int = 10
    max_new_tokens: int = 64
    warm_up: int = 16
    policy: Path | None = None
    dtype: str = "auto"
    seed: int = 0
    json: Path | None = None


@dataclass(frozen=True)
class Sample:
    """Seconds of one environment step.

    Attributes:
        arm: What was played.
        round: The round itself.
        observe: Building the observation behind it.
        predict: Deciding on that observation.
        bookkeeping: The rest of the step.
    """

    arm: str
    round: float
    observe: float
    predict: float
    bookkeeping: float

    @property
    def routing(self) -> float:
        """Everything but the round."""
        return self.observe + self.predict + self.bookkeeping


class TimedRouterEnv(RouterEnv):
    """The router environment with a clock around its observation and an eye on its records."""

    observe_seconds = 0.0
    record: RoundRecord

    def _observe(self) -> Observation:
        start = time.perf_counter()
        observation = super()._observe()
        self.observe_seconds = time.perf_counter() - start
        return observation

    def _round_seconds(self, record: RoundRecord) -> float:
        self.record = record
        return super()._round_seconds(record)


def measure(args: OverheadArgs) -> Result:
    """Decodes, shows and writes the figures.

    Raises:
        DraftgymError: Bad settings.
    """
    check(args, "prompts")
    target, drafters = args.load(args.dtype)
    policy, name = choose_policy(args.policy, target, drafters)
    env = TimedRouterEnv(
        target=target,
        drafters=drafters,
        arms=[str(arm) for arm in policy.arms],
        prompts=interleave_categories(load_prompts("heldout"))[: args.prompts],
        max_new_tokens=args.max_new_tokens,
    )
    samples = collect(env, policy, args.seed)[args.warm_up :]
    if not samples:
        raise DraftgymError("every round fell into the warm-up", "raise --prompts")
    return finish(tables, args, summarise(samples), target, drafters, {"policy": name})


def choose_policy(
    folder: Path | None, target: Target, drafters: Mapping[str, Drafter]
) -> tuple[LearnedPolicy, str]:
    """The router to time and what it is called."""
    folder = folder or shipped_router(target)
    if folder is not None:
        policy = make_policy(str(folder.resolve()), drafters, target)
        assert isinstance(policy, LearnedPolicy), "folders hold learned policies"
        return policy, policy.name
    arms = (*default_arms(drafters), Arm(PLAIN, 0))
    torch.manual_seed(0)
    network = RouterNetwork(len(signal_names(arms)), target.hidden_size, len(arms))
    return LearnedPolicy(network, arms), "untrained network"


def collect(env: TimedRouterEnv, policy: LearnedPolicy, seed: int) -> list[Sample]:
    """One episode per prompt, arms in turn."""
    samples: list[Sample] = []
    for prompt in tqdm(env.prompts, desc="decoding", unit="prompt"):
        observation, _ = env.reset(seed=seed, options={"prompt": prompt.question_id})
        finished = False
        while not finished:
            start = time.perf_counter()
            policy.predict(observation, deterministic=True)
            decided = time.perf_counter()
            observation, _, finished, _, info = env.step(len(samples) % len(env.arms))
            step = time.perf_counter() - decided
            seen, played = env.observe_seconds, env.record.times.total
            predict, rest = decided - start, step - played - seen
            samples.append(Sample(info["arm"], played, seen, predict, rest))
    return samples


def summarise(samples: Sequence[Sample]) -> Result:
    """Percentiles of the pieces in milliseconds, and their share of the round."""
    pieces = {name: _column(samples, name) for name in ("observe", "predict", "bookkeeping")}
    pieces["routing"], rounds = _column(samples, "routing"), _column(samples, "round")
    arms = {}
    for arm in dict.fromkeys(sample.arm for sample in samples):
        mine = [sample for sample in samples if sample.arm == arm]
        routing, own = _column(mine, "routing"), _column(mine, "round")
        arms[arm] = {"rounds": len(mine), "round_ms": _percentiles(own * 1000)["p50"]}
        arms[arm] |= {"share": float(routing.sum() / own.sum())}
    return {
        "rounds": len(samples),
        "milliseconds": {
            name: _percentiles(seconds * 1000)
            for name, seconds in (pieces | {"round": rounds}).items()
        },
        "share_of_round": {
            name: _percentiles(seconds / rounds) | {"total": float(seconds.sum() / rounds.sum())}
            for name, seconds in pieces.items()
        },
        "arms": arms,
        "limit": LIMIT,
        "below_limit": bool(pieces["routing"].sum() < LIMIT * rounds.sum()),
    }


def tables(result: Json) -> list[Table]:
    """The pieces, the arms and the verdict."""
    title = "{target}, {dtype}, threads {threads}; {policy}; {machine}".format(**titled(result))
    rows = []
    for name, ms in result["milliseconds"].items():
        cells = [f"{ms['p50']:.3f}", f"{ms['p10']:.3f}-{ms['p90']:.3f}"]
        if share := result["share_of_round"].get(name):
            cells += [f"{share['p50']:.2%}", f"{share['p10']:.2%}-{share['p90']:.2%}"]
            cells += [f"{share['total']:.2%}"]
        rows.append([name, *cells, *[""] * (5 - len(cells))])
    head = ["piece", "median ms", "p10-p90 ms", "median share", "p10-p90 share", "of all time"]
    bold = frozenset([list(result["milliseconds"]).index("routing")])
    notes = [
        f"{arm}: routing {one['share']:.2%} of its rounds "
        f"({one['rounds']} rounds of {one['round_ms']:.1f} ms)"
        for arm, one in result["arms"].items()
    ]
    verdict = "below" if result["below_limit"] else "NOT below"
    notes.append(f"routing is {verdict} {result['limit']:.0%} of the rounds' time")
    return [Table(title, head, rows, bold, notes)]


def _column(samples: Sequence[Sample], name: str) -> NDArray[np.float64]:
    return np.array([getattr(sample, name) for sample in samples])


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    p10, p50, p90 = np.percentile(values, [10, 50, 90]).tolist()
    return {"p10": p10, "p50": p50, "p90": p90}


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(OverheadArgs, description=__doc__))
