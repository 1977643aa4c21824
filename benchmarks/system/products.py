"""How long one pass's products with all of the target's weights take, torch's own against packed.

    $ python -m benchmarks.system.products --rows 1 2 3 5 9 17 65 256

Products alone: no attention, no norms. Both ways take turns; the median counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import tyro
from torch import Tensor

from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.products import Products, packing_gain
from draftgym.decoding.model.target import Target, load_target

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ProductsArgs:
    """What to time.

    Attributes:
        rows: Rows of a pass.
        repeats: Timings of each, after one that packs.
        target: Embedded target, Hugging Face folder, Hub id or .gguf file.
        threads: CPU threads; default: every core this process may use.
    """

    rows: tuple[int, ...] = (1, 2, 3, 5, 9, 17, 33, 65, 256)
    repeats: int = 7
    target: str = "smollm2-135m"
    threads: int | None = None


@torch.inference_mode()
def time_products(target: Target, rows: int, repeats: int) -> tuple[float, float]:
    """Median seconds of torch's products and of packed ones, over all weights once."""
    layers = [[one.qkv, one.out, one.gate_up, one.down] for one in target.decoder.layers]
    weights = [weight for layer in layers for weight in layer] + [target.decoder.head]
    inputs = {width: torch.randn(rows, width) for width in {w.shape[1] for w in weights}}
    seconds: dict[Products, list[float]] = {Products(): [], target.decoder.products: []}
    for repeat in range(repeats + 1):
        for products, times in seconds.items():
            start = time.perf_counter()
            for weight in weights:
                products(inputs[weight.shape[1]], weight)
            if repeat:
                times.append(time.perf_counter() - start)
    own, packed = (median(times) for times in seconds.values())
    return own, packed


def main(args: ProductsArgs) -> None:
    """Prints one line per number of rows.

    Raises:
        DraftgymError: This machine does not pack.
    """
    target = load_target(args.target, "float32", args.threads)
    if not target.precision.packed:
        raise DraftgymError(
            f"packed products are not used here (gain {packing_gain():.2f})",
            "there is nothing to compare: decoding uses torch's own products",
        )
    print(f"{target.name}: {target.precision.dtype}, {target.precision.threads} threads")
    for rows in args.rows:
        own, packed = time_products(target, rows, args.repeats)
        print(f"{rows:4} rows  torch {1e3 * own:6.1f} ms  packed {1e3 * packed:6.1f} ms")


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(ProductsArgs, description=__doc__))
