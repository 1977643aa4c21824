"""What this machine makes of two busy cores: products of matrices a second.

    $ python -m benchmarks.scaling.cores

Processes that share nothing multiply matrices of a small model's size, alone and all at once. On a
virtual machine two can do more than twice what one does alone, or hardly more than one (two threads
of a core): workers and processes (`workers`, `processes` here) are to be seen against that.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.report import Table
from benchmarks.results import Result, check, finish
from benchmarks.scaling.commands import Rates, table_of
from draftgym.decoding.errors import exit_on_user_error

ROWS, WIDTH, INNER, LAYERS = 8, 576, 1536, 100
"""A pass over few rows; its matrices are far larger than a cache."""


@dataclass(frozen=True, kw_only=True)
class CoresArgs:
    """Measure cores.

    Attributes:
        processes: Numbers of processes at once, of one thread each.
        seconds: How long each measurement takes.
        repeats: How often each number is measured.
        json: Write the figures to this file.
    """

    processes: tuple[int, ...] = (1, 2)
    seconds: float = 5.0
    repeats: int = 5
    json: Path = Path("runs/cores.json")


def measure(args: CoresArgs) -> Result:
    """Measures the numbers of processes in turn, and writes the figures."""
    check(args, "seconds", "repeats")
    found: Rates = {f"{count} at once": [] for count in args.processes}
    with multiprocessing.get_context("spawn").Pool(max(args.processes)) as pool:
        for _ in range(args.repeats):
            for count, rates in zip(args.processes, found.values(), strict=True):
                asked = [args.seconds] * count
                rates.append(sum(pool.map(products, asked, chunksize=1)))
    facts = {"target": "products of matrices", "dtype": "bfloat16"}
    return finish(tables, args, {"rates": found}, facts=facts)


def products(seconds: float) -> float:
    """Matrices that one thread multiplies a second."""
    torch.set_num_threads(1)
    rows = torch.randn(ROWS, WIDTH).bfloat16()
    layers = [torch.randn(WIDTH, INNER).bfloat16() for _ in range(LAYERS)]
    _pass(rows, layers)
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        _pass(rows, layers)
        done += LAYERS
    return done / took


def _pass(rows: torch.Tensor, layers: Sequence[torch.Tensor]) -> None:
    for layer in layers:
        rows @ layer


def tables(result: Result) -> list[Table]:
    """Rates by number of processes."""
    return [table_of(result, "products")]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(CoresArgs, description=__doc__))
