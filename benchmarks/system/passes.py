"""How long a pass of the target takes in each way that runs it, over few rows and over many.

    $ python -m benchmarks.system.passes --rows 1 5 9 17 --context 200

`torch` multiplies as torch does, `packed` with packed weights, `compiled` is OpenVINO's pass, where
it is installed and takes so many rows. `reading` is the time of reading all weights once, which no
pass over them is faster than. All take turns; the median counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
import tyro
from torch import Tensor

from benchmarks.report import Cell, Json, Table, number, titled
from benchmarks.results import Record, Result, TargetOptions, check, finish
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.compact.compiled.passes import CompiledPass
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.rows import TorchRowWork
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import load_target

WAYS = ("torch", "packed", "compiled", "reading")
Run = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class PassesArgs(TargetOptions):
    """What to time.

    Attributes:
        rows: Rows of a pass.
        context: Cached positions.
        repeats: Timings of each, after one that warms up.
        json: Write the figures to this file.
    """

    rows: tuple[int, ...] = (1, 2, 3, 5, 9, 17, 33, 65, 256)
    context: int = 200
    repeats: int = 15
    json: Path | None = None


def measure(args: PassesArgs) -> Result:
    """Times every number of rows, shows and writes the figures.

    Raises:
        DraftgymError: Bad settings, or a target that transformers drives.
    """
    check(args)
    target = load_target(args.target, "float32", args.threads, "cpu", "compact")
    ways = ways_of(target.compact, args, target.precision.threads)
    compiled = target.compact.compiled
    rows = []
    for count in args.rows:
        takes = compiled is not None and count <= compiled.most_rows
        some = {name: run for name, run in ways.items() if takes or name != "compiled"}
        rows.append(time_ways(some, count, args.repeats))
    return finish(tables, args, {"rows": rows}, target)


def ways_of(decoder: Decoder, args: PassesArgs, threads: int) -> dict[str, Run]:
    """Every way to run a pass of so many rows."""
    shape, layers, head = decoder.shape, decoder.layers, decoder.head
    torchs = {
        name: TorchRowWork(shape, layers, head, Products(packed=name == "packed"))
        for name in WAYS[:2]
    }
    try:
        compiled = CompiledPass(decoder, threads)
    except DraftgymError as error:
        print(f"note: nothing is compiled: {error.problem}")
        compiled = None
    capacity = args.context + max(args.rows) + 1
    torchs_cache = decoder.new_cache(capacity)
    decoder.compiled = compiled
    its_cache = decoder.new_cache(capacity)  # grows as it is read
    torchs_cache.length = its_cache.length = args.context
    tokens = torch.arange(max(args.rows)) % len(decoder.embedding)

    def run(name: str, count: int) -> object:
        decoder.row_work = torchs.get(name, torchs["packed"])
        is_compiled = name == "compiled"
        decoder.compiled = compiled if is_compiled else None
        cache = its_cache if is_compiled else torchs_cache
        return decoder.forward([NewRows(cache, tokens[:count])])

    names = [name for name in WAYS[:3] if name != "compiled" or compiled is not None]
    ways: dict[str, Run] = {name: lambda count, name=name: run(name, count) for name in names}  # type: ignore[misc]
    weights = [part for layer in layers for part in vars(layer).values() if part is not None]
    return ways | {"reading": lambda _: read_once([*weights, head])}


def read_once(weights: list[Tensor]) -> float:
    """Reads every number of the weights."""
    return sum(float(weight.sum()) for weight in weights)


def time_ways(ways: Mapping[str, Run], count: int, repeats: int) -> Record:
    """Median milliseconds of each way, and half the range of its middle half over the median."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run(count)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    figures: Record = {"rows": count} | dict.fromkeys(f"{name}_ms" for name in WAYS)
    for name, times in seconds.items():
        low, middle, high = quantiles(times, n=4) if len(times) > 1 else times * 3
        figures |= {f"{name}_ms": 1e3 * median(times), f"{name}_spread": (high - low) / 2 / middle}
    return figures


def tables(result: Json) -> list[Table]:
    """Milliseconds by rows of a pass."""
    title = "a pass of {target}, {dtype}, threads {threads}; {machine}; ms".format(**titled(result))

    def told(name: str) -> Cell:
        def cell(row: Json) -> str:
            return "" if row[f"{name}_ms"] is None else f"{row[f'{name}_ms']:.1f}"

        return cell

    columns = {"rows": number("rows", "")} | {name: told(name) for name in WAYS}
    return [Table.of(title, result["rows"], columns)]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(PassesArgs, description=__doc__))
