"""Products of a few rows with frozen weights.

Verification multiplies some rows with every weight of the target. torch's float32 product then
re-arranges the weight at each call, and nine rows can cost more than twice a single one. oneDNN can
keep a weight in its own order: a copy in memory against the time. Whether that pays is tried on the
machine (`packing_gain`); where it does not, and where torch was built without it, products are
torch's own.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST, MOST = 4, 48
"""Rows for which the packed order is faster."""

PACKED_FOR = 16
"""The number of rows that oneDNN is told to expect."""

SMALLEST = 1 << 16
"""Weights with fewer numbers stay in the caches anyway."""


class Products:
    """`F.linear` with the weights of one model.

    Args:
        packed: Whether to keep packed copies for calls with a few rows.
    """

    def __init__(self, packed: bool = False) -> None:
        self.packed = packed
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias` for rows `x` `[n, inputs]` and a weight `[outputs, inputs]`."""
        if not self.packed or not FEWEST <= x.shape[0] <= MOST or weight.numel() < SMALLEST:
            return F.linear(x, weight, bias)
        # The weight is kept beside its copy, so that its id stays its own.
        _, copy = self._copies.get(id(weight)) or self._pack(weight)
        return _packed_product(x, copy, bias)

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        self._copies[id(weight)] = pair = (weight, _pack(weight))
        return pair


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
    return packed


def _packed_product(x: Tensor, copy: Tensor, bias: Tensor | None) -> Tensor:
    no_scalars: list[Any] = []
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", no_scalars, "")
    return out


@cache
@torch.inference_mode()
def packing_gain() -> float:
    """How many times faster packed products are here for nine rows; 0 where there are none."""
    try:
        weights = [torch.randn(3072, 576) for _ in range(8)]  # more than a core's own caches hold
        copies = [_pack(weight) for weight in weights]
        rows = torch.randn(9, 576)
        plain = packed = float("inf")
        for _ in range(6):  # interleaved, so that drift hits both
            start = time.perf_counter()
            for weight in weights:
                F.linear(rows, weight)
            middle = time.perf_counter()
            for copy in copies:
                _packed_product(rows, copy, None)
            plain = min(plain, middle - start)
            packed = min(packed, time.perf_counter() - middle)
    except (AttributeError, NotImplementedError, RuntimeError):  # a torch without these operators
        return 0.0
    return plain / packed
