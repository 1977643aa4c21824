"""Mixture of experts: each row goes through the few MLPs that a router chooses for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.device import to_host


def mix_experts(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    count: int,
    sums_to_one: bool,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """What the experts give, weighted by the router's shares.

    Args:
        x: Normed rows `[N, d]`.
        router: `[E, d]`.
        gate_up: `[E, 2 * I, d]`.
        down: `[E, d, I]`.
        count: Experts of a row.
        sums_to_one: Whether the shares of a row's experts are scaled to a sum of 1.
        activation: Of the gates.

    Returns:
        `[N, d]`.
    """
    shares, chosen = F.linear(x, router).softmax(-1, dtype=torch.float32).topk(count, dim=-1)
    if sums_to_one:
        shares = shares / shares.sum(-1, keepdim=True)
    shares, mixed = shares.to(x.dtype), torch.zeros_like(x)
    for expert in to_host(chosen.unique()).tolist():  # only the weights of those that are hit
        rows, place = (chosen == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[rows], gate_up[expert]).chunk(2, dim=-1)
        out = F.linear(activation(gate) * up, down[expert])
        mixed.index_add_(0, rows, out * shares[rows, place, None])
    return mixed
