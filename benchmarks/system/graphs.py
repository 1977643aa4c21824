"""What a CUDA graph of a pass would gain: passes of so many rows, ordinary, fixed and captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.results import Record
from benchmarks.system.accelerator.fixed import FixedPass
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.decoding.model.target import Target

Pass = Callable[[], PassOutput]


def time_graphs(
    target: Target, rows: Sequence[int], context: int, capacity: int, repeats: int
) -> Iterator[Record]:
    """Milliseconds of passes behind `context` positions in a cache of `capacity`.

    Args:
        target: The target; its own pass is compact.
        rows: Numbers of rows.
        context: Cached positions.
        capacity: Positions that the cache holds: what passes of fixed shape attend to.
        repeats: Timings of each.

    Yields:
        Per number of rows the medians (`captured_ms` on CUDA alone), the spread of each (half its
        range over its median), and the largest difference of logits.

    Raises:
        DraftgymError: The target has no compact decoder, or one with windows.
    """
    decoder = target.compact
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(target.vocab_size, (context,), generator=generator).to(target.device)
    for count in rows:
        cache = decoder.new_cache(capacity)
        decoder.forward([NewRows(cache, tokens)], with_logits=False)
        cache.keep(context)
        new = tokens[:count]
        ordinary = partial(_ordinary, decoder, cache, new)
        passes: dict[str, Pass] = {
            "ordinary": ordinary,
            "fixed": partial(FixedPass(decoder, cache, count), new),
        }
        if target.device.type == "cuda":
            held = FixedPass(decoder, cache, count)
            held.capture()
            passes["captured"] = partial(held, new)
        wanted, difference = ordinary().logits, 0.0
        for run in passes.values():
            difference = max(difference, float((run().logits - wanted).abs().max()))
        seconds = _interleaved(passes, target.device, repeats)
        figures: Record = {"rows": count, "difference": difference}
        for name, times in seconds.items():
            figures[f"{name}_ms"] = 1e3 * median(times)
            figures[f"{name}_spread"] = (max(times) - min(times)) / 2 / median(times)
        yield figures


def _ordinary(decoder: Decoder, cache: KVCache, new: Tensor) -> PassOutput:
    return decoder.forward([NewRows(cache, new)])[0]


def _interleaved(
    passes: dict[str, Pass], device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each pass, in turn, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, run in passes.items():
            start = clock(device)
            run()
            seconds[name].append(clock(device) - start)
    return seconds
