"""Products of a few rows with frozen weights.

Decoding multiplies one row, or a few, with every weight of the target: how fast that goes is how
fast memory is read. torch's float32 product re-arranges the weight at each call instead, so that
one row costs more than it should and three rows cost more than twice one. oneDNN can keep a weight
in its own order: a copy in memory against the time. Whether that pays is tried on the machine
(`packing_gain`); where it does not, and where torch was built without it, products are torch's own.

Packed products have a second virtue: a row's result does not depend on how many rows there are (in
float32, as far as was tried), where other products round differently from one row to five.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST = 4
"""Fewer rows are filled up to so many: oneDNN has other, slower ways for one and two."""

PACKED_FOR = 16
"""The number of rows that oneDNN is told to expect."""

SMALLEST = 1 << 16
"""Weights with fewer numbers stay in the caches anyway."""


class Products:
    """`F.linear` with the weights of one model.

    Args:
        packed: Whether to keep packed copies of them.
    """

    def __init__(self, packed: bool = False) -> None:
        self.packed = packed
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias` for rows `x` `[n, inputs]` and a weight `[outputs, inputs]`."""
        if not self.packed or weight.numel() < SMALLEST:
            return F.linear(x, weight, bias)
        # The weight is kept beside its copy, so that its id stays its own.
        _, copy = self._copies.get(id(weight)) or self._pack(weight)
        rows = x.shape[0]
        if rows >= FEWEST:
            return _packed_product(x, copy, bias)
        return _packed_product(F.pad(x, (0, 0, 0, FEWEST - rows)), copy, bias)[:rows]

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


class PackedLinear(nn.Module):
    """An `nn.Linear` for use, not for training: its weight must not change any more.

    Args:
        linear: The layer whose weight it takes over, under the same name.
        products: Keeps the packed copy.
    """

    def __init__(self, linear: nn.Linear, products: Products) -> None:
        super().__init__()
        self.weight, self.bias, self.products = linear.weight, linear.bias, products

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        rows = self.products(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return rows.view(*x.shape[:-1], -1)


def pack_linears(module: nn.Module, products: Products) -> None:
    """Lets all linear layers of a finished network use packed products."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, products))
        else:
            pack_linears(child, products)


@cache
@torch.inference_mode()
def packing_gain() -> float:
    """How many times faster packed products are here for one and for nine rows together.

    0 where there are none.
    """
    try:
        weights = [torch.randn(3072, 576) for _ in range(8)]  # more than a core's own caches hold
        some = [torch.randn(count, 576) for count in (1, 9)]
        plain, packed = Products(), Products(packed=True)
        seconds = {plain: float("inf"), packed: float("inf")}
        for _ in range(7):  # interleaved, so that drift hits both; the first packs
            for products in seconds:
                start = time.perf_counter()
                for rows in some:
                    for weight in weights:
                        products(rows, weight)
                seconds[products] = min(seconds[products], time.perf_counter() - start)
    except (AttributeError, NotImplementedError, RuntimeError):  # a torch without these operators
        return 0.0
    return seconds[plain] / seconds[packed]
