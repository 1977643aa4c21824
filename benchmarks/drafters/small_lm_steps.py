"""What a step of a small LM costs by its layers and by the rows of its head.

    $ python -m benchmarks.drafters.small_lm_steps --threads 1

A small LM is some of its target's layers, and what a pass costs does not depend on what its weights
are, so nothing is trained here: layers and head are the target's own. Steps of each size take turns
with passes of the target over one row; medians, and the share of the target's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import torch
import tyro

from benchmarks.report import Json, Table, number, titled
from benchmarks.results import Record, Result, TargetOptions, check, finish
from draftgym.decoding.errors import exit_on_user_error
from draftgym.decoding.model.compact.compiled.passes import compiled_pass
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.small_lm.vocabulary import with_rows


@dataclass(frozen=True, kw_only=True)
class StepsArgs(TargetOptions):
    """What to time.

    Attributes:
        layers: Layers of the small LM.
        rows: Rows of its head, the first ones; more than there are stand for all.
        context: Cached positions.
        repeats: Timings of each, after three that warm up.
        dtype: Of target and small LM.
        json: Write the figures to this file.
    """

    layers: tuple[int, ...] = (6, 4, 3, 2)
    rows: tuple[int, ...] = (1 << 30, 8192, 4096)
    context: int = 200
    repeats: int = 60
    dtype: str = "float32"
    json: Path | None = None


def measure(args: StepsArgs) -> Result:
    """Times all sizes, shows and writes the figures.

    Raises:
        DraftgymError: Bad settings, or a target that transformers drives.
    """
    check(args)
    target = load_target(args.target, args.dtype, args.threads, args.device, args.backend)
    vocab, steps = target.vocab_size, list[Record]()
    sizes = dict.fromkeys((n, min(m, vocab)) for n, m in product(args.layers, args.rows))
    for layers, rows in sizes:  # one at a time: a compiled one is a copy of its weights
        pair = [target.compact, cut_down(target, layers, rows)]
        whole, step = time_steps(pair, args.context, args.repeats)
        told = {"layers": layers, "rows": rows, "ms": 1e3 * step, "target_ms": 1e3 * whole}
        steps.append(told | {"share": step / whole})
    return finish(tables, args, {"steps": steps}, target)


def cut_down(target: Target, layers: int, rows: int) -> Decoder:
    """The target's first layers with the first rows of its head, run as the target is run."""
    whole, products = target.compact, Products(target.precision.packed)
    ropes = whole.shape.ropes[:layers]
    shape = replace(whole.shape, layers=layers, ropes=ropes, windows=whole.windows[:layers])
    parts = (whole.embedding, whole.final_norm, whole.head, whole.rotaries, products)
    some = Decoder(shape, whole.layers[:layers], *parts, whole.embedding_scale)
    some = with_rows(some, torch.arange(rows), products)
    if target.precision.compiles:
        some.compiled, _ = compiled_pass(some, target.precision.threads)
    return some


def time_steps(decoders: list[Decoder], context: int, repeats: int) -> list[float]:
    """Median seconds of a pass over one row behind so many positions, one per decoder."""
    caches = [decoder.new_cache(context + 2) for decoder in decoders]
    for cache in caches:
        cache.keys.normal_()
        cache.values.normal_()
        cache.length = context
    seconds: list[list[float]] = [[] for _ in decoders]
    device = decoders[0].device
    token = torch.zeros(1, dtype=torch.long, device=device)
    for _ in range(repeats + 3):
        for decoder, cache, took in zip(decoders, caches, seconds, strict=True):
            start = clock(device)
            decoder.forward([NewRows(cache, token)])
            took.append(clock(device) - start)
    return [median(took[3:]) for took in seconds]


def tables(result: Json) -> list[Table]:
    """Milliseconds and shares."""
    title = "a step of {target}'s layers, {dtype}, threads {threads}; {machine}"
    columns = {
        "layers": number("layers", ""),
        "rows of the head": number("rows", ""),
        "ms": number("ms", ".1f"),
        "the target's": number("target_ms", ".1f"),
        "share": number("share", ".3f"),
    }
    return [Table.of(title.format(**titled(result)), result["steps"], columns)]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(StepsArgs, description=__doc__))
