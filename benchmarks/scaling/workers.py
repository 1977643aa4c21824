"""Traces by the plain loop and by workers on Ray: positions a second, without the start.

    $ python -m benchmarks.scaling.workers --json runs/workers.json

Starting (models, Ray) takes the same time however much is traced, so what counts is from the first
finished shard of each worker to the last one. All ways write the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from benchmarks.report import Json, Table
from benchmarks.results import Result, TargetOptions, check, finish
from benchmarks.scaling.commands import draftgym, rates, table_of
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.rollouts.traces.file import rows_in
from draftgym.rollouts.traces.shards import shards_in
from draftgym.rollouts.workers.cluster import require_ray


@dataclass(frozen=True, kw_only=True)
class WorkersArgs(TargetOptions):
    """Measure workers.

    Attributes:
        prompts: train, heldout, or a JSON-lines file.
        limit_per_category: Prompts of each category.
        max_new_tokens: Tokens of a text.
        shard_texts: Texts of a shard.
        arms: What is asked at every position; default: as `draftgym collect`.
        dtype: Of the target.
        workers: Numbers of workers, of one core each.
        repeats: How often each way is timed.
        json: Write the figures to this file.
    """

    prompts: str = "train"
    limit_per_category: int = 8
    max_new_tokens: int = 64
    shard_texts: int = 8
    arms: tuple[str, ...] = ()
    dtype: str = "float32"
    workers: tuple[int, ...] = (1, 2)
    repeats: int = 3
    json: Path = Path("runs/workers.json")


def measure(args: WorkersArgs) -> Result:
    """Times the ways in turn, and writes the figures."""
    check(args, "limit_per_category", "max_new_tokens", "shard_texts", "repeats")
    require_ray()
    target, drafters = args.load(args.dtype)
    found = rates(ways(args), partial(rate_of, most=max(args.workers)), args.repeats)
    return finish(tables, args, {"rates": found}, target, drafters)


def ways(args: WorkersArgs) -> dict[str, Callable[[Path], list[str]]]:
    """The plain loop with one thread and with as many as the most workers have; then workers."""

    def command(more: list[object], out: Path) -> list[str]:
        return draftgym(
            "collect", "--out", out, "--prompts", args.prompts, "--dtype", args.dtype,
            "--limit-per-category", args.limit_per_category, "--shard-texts", args.shard_texts,
            "--max-new-tokens", args.max_new_tokens, "--target", args.target,
            "--device", args.device, "--backend", args.backend,
            *(["--arms", *args.arms] if args.arms else []), *more,
        )  # fmt: skip

    plain = {f"plain loop, {n} threads": ["--threads", n] for n in sorted({1, *args.workers})}
    pools = {f"Ray, {n} workers": ["--ray", "local", "--workers", n] for n in args.workers}
    return {name: partial(command, list(more)) for name, more in {**plain, **pools}.items()}


def rate_of(folder: Path, most: int) -> float:
    """Positions a second behind the first `most` shards of a folder.

    Raises:
        DraftgymError: There are not more shards than that.
    """
    shards = sorted((one.stat().st_mtime_ns, rows_in(one)) for one in shards_in(folder))
    if len(shards) <= most:
        raise DraftgymError(
            f"{len(shards)} shards tell nothing of {most} workers",
            "trace more (--limit-per-category), or write smaller shards (--shard-texts)",
        )
    begin, end = shards[most - 1][0], shards[-1][0]
    return sum(rows for _, rows in shards[most:]) / max(1e-9, 1e-9 * (end - begin))


def tables(result: Json) -> list[Table]:
    """Rates of every way."""
    return [table_of(result, "positions")]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(WorkersArgs, description=__doc__))
