"""How fast traces are collected, replayed and learned from.

    $ draftgym collect --out runs/traces
    $ python -m benchmarks.system.trace_speed --traces runs/traces --json runs/trace_speed.json

* Collecting: positions a second, each with the counterfactuals of every arm: many positions at
  once (`draftgym.rollouts.traces.collect`), one position at a time, and by live decoding, where
  each arm needs a round of its own at each position (random arms are played, their rate divided by
  the arms).
* Replaying: rounds a second of the vectorised environment under random actions, on one thread.
* Learning: rounds a second of PPO from end to end, and the minutes of a million rounds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import tyro

from benchmarks.report import Json, Table, titled
from benchmarks.results import Result, check, finish
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import train_router
from draftgym.decoding.arms import PLAIN, Arm, parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import exit_on_user_error
from draftgym.decoding.model.target import Target
from draftgym.drafters.positions.batched import BatchDrafter
from draftgym.envs.router.replay import RouterReplayVectorEnv
from draftgym.policies.routers.rules import RandomPolicy
from draftgym.rollouts.decode.batched import requests_of_run
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.decode.interleaved import decode_prompts
from draftgym.rollouts.decode.options import DecodingOptions
from draftgym.rollouts.prompts.sets import Prompt, interleave_categories, load_prompts
from draftgym.rollouts.traces.counterfactual import trace_texts
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, kw_only=True)
class TraceSpeedArgs(DecodingOptions):
    """Measure traces.

    Attributes:
        traces: Folder of traces to replay; their arms are collected.
        texts: Texts to collect anew.
        count: Episodes of the vectorised environment.
        rounds: Rounds of PPO.
        json: Write the figures to this file.
    """

    traces: Path = Path("runs/traces")
    texts: int = 20
    count: int = 512
    rounds: int = 1_000_000
    max_new_tokens: int = 128
    json: Path = Path("runs/trace_speed.json")


def measure(args: TraceSpeedArgs) -> Result:
    """Measures all three, shows and writes the figures."""
    check(args, "texts", "count", "rounds")
    traces = read_traces(args.traces)
    arms = [*map(parse_arm, traces.origin.arms), Arm(PLAIN, 0)]
    target, drafters = args.load()
    prompts = interleave_categories(load_prompts("train"))[: args.texts]
    figures = {
        "collected_positions_per_second": collecting(args, target, drafters, arms, prompts),
        "replayed_rounds_per_second": replaying(traces, arms, args.count),
        "ppo": learning(args, arms),
    }
    return finish(tables, args, figures, target, drafters, {"arms": list(map(str, arms))})


def tables(result: Json) -> list[Table]:
    """Rates of collecting, replaying and learning."""
    facts = result["environment"]
    collected = result["collected_positions_per_second"].items()
    rows = [[f"collecting {name}", f"{rate:,.1f}", "positions/s"] for name, rate in collected]
    rate = f"{result['replayed_rounds_per_second']:,.0f}"
    rows.append([f"replaying {facts['settings']['count']} episodes", rate, "rounds/s"])
    rows.append(["PPO from end to end", f"{result['ppo']['rounds_per_second']:,.0f}", "rounds/s"])
    title = "{target}, {dtype}, threads {threads}; {machine}".format(**titled(result))
    return [Table(title, ["what", "rate", "unit"], rows)]


def collecting(
    args: TraceSpeedArgs,
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: list[Arm],
    prompts: list[Prompt],
) -> dict[str, float]:
    """Positions a second, in three ways; the slow ways collect a fifth of the texts."""
    few = prompts[: max(1, len(prompts) // 5)]

    def trace(some: list[Prompt]) -> int:
        fitted = fit_prompts(target, some, args.max_new_tokens)
        requests = requests_of_run(fitted, args.temperature, args.seed)
        texts = trace_texts(target, drafters, arms, requests, args.max_new_tokens)
        return sum(len(text) for text in texts)

    def one_by_one() -> int:
        with patch.object(BatchDrafter, "propose_at_each", Drafter.propose_at_each):
            return trace(few)

    def live() -> float:
        policy = RandomPolicy(arms)
        texts = decode_prompts(
            target, drafters, {policy.name: policy}, few, args.settings, progress=False
        )
        return sum(len(text.generation.rounds) for text in texts) / len(arms)

    trace(few[:1])
    return {
        "many positions at once": _rate(lambda: trace(prompts)),
        "one position at a time": _rate(one_by_one),
        "by live decoding": _rate(live),
    }


def replaying(traces: TraceSet, arms: list[Arm], count: int, steps: int = 300) -> float:
    """Rounds a second of the vectorised environment on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    env = RouterReplayVectorEnv(count, traces, list(map(str, arms)))
    env.reset()
    actions = np.random.default_rng(0).integers(len(arms), size=(steps, count))

    def play() -> int:
        for action in actions:
            env.step(action)
        return steps * count

    play()
    rate = _rate(play)
    torch.set_num_threads(threads)
    return rate


def learning(args: TraceSpeedArgs, arms: list[Arm]) -> dict[str, float]:
    """PPO with its defaults, reading the traces and validating included."""
    with tempfile.TemporaryDirectory() as folder:
        settings = RouterArgs(
            traces=args.traces,
            arms=tuple(map(str, arms)),
            rounds=args.rounds,
            run=Path(folder),
            threads=args.threads,
        )
        start = time.perf_counter()
        train_router(settings)
        seconds = time.perf_counter() - start
    return {"rounds_per_second": args.rounds / seconds, "minutes": seconds / 60}


def _rate(work: Callable[[], float]) -> float:
    start = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(TraceSpeedArgs, description=__doc__))
