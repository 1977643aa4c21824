"""How long one pass's products with all of the target's weights take, torch's own against packed.

    $ python -m benchmarks.system.products --rows 1 2 3 5 9 17 65 256

Products alone: no attention, no norms. Both ways take turns; the median counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import tyro

from benchmarks.report import Json, Table, number, titled
from benchmarks.results import Result, TargetOptions, check, finish
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.compact.products import Products, packing_gain
from draftgym.decoding.model.target import Target, load_target


@dataclass(frozen=True, kw_only=True)
class ProductsArgs(TargetOptions):
    """What to time.

    Attributes:
        rows: Rows of a pass.
        repeats: Timings of each, after one that packs.
        json: Write the figures to this file.
    """

    rows: tuple[int, ...] = (1, 2, 3, 5, 9, 17, 33, 65, 256)
    repeats: int = 7
    json: Path | None = None


@torch.inference_mode()
def time_products(target: Target, rows: int, repeats: int) -> tuple[float, float]:
    """Median milliseconds of torch's products and of packed ones, over all weights once."""
    layers = [[one.qkv, one.out, one.gate_up, one.down] for one in target.compact.layers]
    weights = [weight for layer in layers for weight in layer] + [target.decoder.head]
    inputs = {width: torch.randn(rows, width) for width in {w.shape[1] for w in weights}}
    seconds: dict[Products, list[float]] = {Products(): [], Products(packed=True): []}
    for repeat in range(repeats + 1):
        for products, times in seconds.items():
            start = time.perf_counter()
            for weight in weights:
                products(inputs[weight.shape[1]], weight)
            if repeat:
                times.append(time.perf_counter() - start)
    own, packed = (1e3 * median(times) for times in seconds.values())
    return own, packed


def measure(args: ProductsArgs) -> Result:
    """Times every number of rows, shows and writes the figures.

    Raises:
        DraftgymError: This machine does not pack.
    """
    check(args)
    target = load_target(args.target, "float32", args.threads, "cpu")
    if not target.precision.packed:
        raise DraftgymError(
            f"packed products are not used here (gain {packing_gain():.2f})",
            "there is nothing to compare: decoding uses torch's own products",
        )
    rows = []
    for count in args.rows:
        own, packed = time_products(target, count, args.repeats)
        rows.append({"rows": count, "torch_ms": own, "packed_ms": packed})
    return finish(tables, args, {"rows": rows}, target)


def tables(result: Json) -> list[Table]:
    """Milliseconds by rows of a pass."""
    title = "all weights of {target} once, {dtype}, threads {threads}; {machine}; ms"
    columns = {
        "rows": number("rows", ""),
        "torch": number("torch_ms", ".1f"),
        "packed": number("packed_ms", ".1f"),
    }
    return [Table.of(title.format(**titled(result)), result["rows"], columns)]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(ProductsArgs, description=__doc__))
