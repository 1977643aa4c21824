"""How fast training runs, and how far that is from what the machine's matrix products allow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def matmul_peak(size: int = 1536, repeats: int = 4) -> float:
    """Best rate of a square float32 product here and now, in GFLOP/s."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


@dataclass
class FlopRate:
    """Operations and seconds of what ran under `count_flops`.

    Attributes:
        flops: Floating-point operations of all matrix products, backward passes included.
        seconds: Wall-clock.
    """

    flops: int = 0
    seconds: float = 0.0

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.flops / max(self.seconds, 1e-9) / 1e9


@contextmanager
def count_flops() -> Iterator[FlopRate]:
    """Counts the matrix products of a block; the counter costs some microseconds an operation."""
    rate = FlopRate()
    counter: Any = FlopCounterMode(display=False)
    start = time.perf_counter()
    with counter:
        yield rate
    rate.flops, rate.seconds = counter.get_total_flops(), time.perf_counter() - start
