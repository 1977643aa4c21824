"""A drafter trained by one process and by several (`torchrun`): response tokens a second.

    $ draftgym respond --prompts train --out runs/responses
    $ python -m benchmarks.scaling.processes --corpus runs/responses --json runs/processes.json

All train the same batches in as many parts as there are processes at most, and learn the same.
Rates are of updates; loading and measuring are not in them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from benchmarks.report import Json, Table
from benchmarks.results import Result, TargetOptions, check, finish
from benchmarks.scaling.commands import draftgym, rates, table_of
from draftgym.decoding.errors import exit_on_user_error


@dataclass(frozen=True, kw_only=True)
class ProcessesArgs(TargetOptions):
    """Measure processes.

    Attributes:
        corpus: The target's responses.
        validation: Texts to measure on, which takes time of its own; see `draftgym train-drafter`.
        drafter: eagle3, dflash or small-lm.
        features: See `draftgym train-drafter`; without it the target runs, too.
        dtype: Of the target.
        processes: Numbers of processes, of one thread each.
        updates: Updates of a run.
        batch_size: Texts of an update.
        repeats: How often each way is timed.
        json: Write the figures to this file.
    """

    corpus: Path = Path("runs/responses")
    validation: Path | None = None
    drafter: str = "eagle3"
    features: Path | None = None
    dtype: str = "float32"
    processes: tuple[int, ...] = (1, 2)
    updates: int = 10
    batch_size: int = 8
    repeats: int = 3
    json: Path = Path("runs/processes.json")


def measure(args: ProcessesArgs) -> Result:
    """Times the ways in turn, and writes the figures."""
    check(args, "updates", "batch_size", "repeats")
    target, drafters = args.load(args.dtype)
    found = rates(ways(args), rate_of, args.repeats)
    return finish(tables, args, {"rates": found}, target, drafters)


def ways(args: ProcessesArgs) -> dict[str, Callable[[Path], list[str]]]:
    """One process with one thread, and with as many as the most processes have; then several."""
    most, given = max(args.processes), {"features": args.features, "validation": args.validation}
    more = [word for name, path in given.items() if path for word in (f"--{name}", path)]

    def command(count: int, threads: int, run: Path) -> list[str]:
        alone = draftgym(
            "train-drafter", args.drafter, "--run", run, "--corpus", args.corpus,
            "--target", args.target, "--dtype", args.dtype, "--device", args.device,
            "--backend", args.backend, "--threads", threads, "--trainer.updates", args.updates,
            "--trainer.batch-size", args.batch_size, "--trainer.parts", most,
            "--trainer.measure-minutes", 0, *more,
        )  # fmt: skip
        if count == 1:
            return alone
        team = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        return [sys.executable, "-m", *team, *alone[1:2], "--", *alone[2:]]

    plain = {f"1 process, {n} threads": (1, n) for n in sorted({1, most})}
    teams = {f"{n} processes": (n, 1) for n in args.processes if n > 1}
    return {name: partial(command, *one) for name, one in {**plain, **teams}.items()}


def rate_of(run: Path) -> float:
    """Response tokens a second of a run."""
    last = (run / "metrics.jsonl").read_text(encoding="utf-8").strip().rpartition("\n")[2]
    return float(json.loads(last)["tokens_per_second"])


def tables(result: Json) -> list[Table]:
    """Rates of every way."""
    return [table_of(result, "response tokens")]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(ProcessesArgs, description=__doc__))
