"""What a pass computes row by row: everything but attention, from one attention to the next.

Behind a layer's attention come its output projection, the MLP, the next layer's norm and its
projections, rotated. No row of these reads another, so rows of any number of sequences go through
them together, and a compiler may join all of it (`draftgym.decoding.model.compact.compiled`). Here
torch runs it operation by operation.

Notation: N = rows, d = hidden size, H, G = query and key/value heads, D = their size, I = width of
an MLP, E = experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.compact.experts import mix_experts
from draftgym.decoding.model.compact.layers import rms_norm, rotate
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.interface import NO_ROPE, DecoderShape

CosSin = tuple[Tensor, Tensor]
Projections = tuple[Tensor, Tensor, Tensor]
"""Rotated queries `[N, H, D]`, rotated keys and values, both `[N, G, D]`."""


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one decoder layer, projections fused; None for what its architecture has not."""

    input_norm: Tensor | None  # [d], before attention
    qkv: Tensor  # [(H + 2G) * D, d]
    qkv_bias: Tensor | None  # [(H + 2G) * D]
    q_norm: Tensor | None  # [D], or [H * D] where all heads are normed as one
    k_norm: Tensor | None  # [D], or [G * D]
    out: Tensor  # [d, H * D]
    out_bias: Tensor | None  # [d]
    post_norm: Tensor | None  # [d], before the MLP
    gate_up: Tensor  # [2 * I, d], or [E, 2 * I, d] where there are experts
    down: Tensor  # [d, I], or [E, d, I]
    attended_norm: Tensor | None = None  # [d], of what attention gives
    mlp_norm: Tensor | None = None  # [d], of what the MLP gives
    gate_up_bias: Tensor | None = None  # [2 * I]
    down_bias: Tensor | None = None  # [d]
    router: Tensor | None = None  # [E, d]


class RowWork(Protocol):
    """The row-wise part of a decoder. What it gives holds until it is asked for the same again."""

    def project(self, x: Tensor, angles: Sequence[CosSin]) -> Projections:
        """What the first layer attends with.

        Args:
            x: Embedded rows `[N, d]`.
            angles: Of the rows, one pair for each rotary table.
        """
        ...

    def go_on(
        self, layer: int, x: Tensor, attended: Tensor, angles: Sequence[CosSin]
    ) -> tuple[Tensor, Projections | None]:
        """What follows a layer's attention, up to the next one.

        Args:
            layer: The layer.
            x: The residual stream before it, `[N, d]`.
            attended: What its attention gives, `[N, H * D]`.
            angles: Of the rows.

        Returns:
            The residual stream behind the layer, and what the next layer attends with; None behind
            the last one.
        """
        ...

    def score(self, hidden: Tensor) -> Tensor:
        """Rows of final hidden states `[N, d]` times the LM head, `[N, vocab]`, a new tensor."""
        ...


class TorchRowWork:
    """A `RowWork` that torch runs.

    Args:
        shape: Sizes of the decoder.
        layers: Its weights.
        head: `[vocab, d]`.
        products: How rows are multiplied with weights.
    """

    def __init__(
        self,
        shape: DecoderShape,
        layers: Sequence[LayerWeights],
        head: Tensor,
        products: Products,
    ) -> None:
        self.shape, self.layers, self.head, self.products = shape, layers, head, products
        self.activation = _activation(shape.activation)
        self.ropes = shape.ropes or (0,) * shape.layers

    def project(self, x: Tensor, angles: Sequence[CosSin]) -> Projections:
        """See `RowWork.project`."""
        return self._projections(0, x, angles)

    def go_on(
        self, layer: int, x: Tensor, attended: Tensor, angles: Sequence[CosSin]
    ) -> tuple[Tensor, Projections | None]:
        """See `RowWork.go_on`."""
        weights = self.layers[layer]
        mixed = self.products(attended, weights.out, weights.out_bias)
        x = self._join(x, mixed, weights.attended_norm)
        x = self._join(x, self._mlp(weights, x), weights.mlp_norm)
        following = layer + 1
        if following == self.shape.layers:
            return x, None
        return x, self._projections(following, x, angles)

    def score(self, hidden: Tensor) -> Tensor:
        """See `RowWork.score`."""
        return self.products(hidden, self.head)

    def _join(self, x: Tensor, branch: Tensor, norm: Tensor | None) -> Tensor:
        """The residual stream with what attention or an MLP gives."""
        if norm is not None:
            branch = rms_norm(branch, norm, self.shape.eps)
        return torch.add(x, branch, alpha=self.shape.residual_scale)

    def _mlp(self, layer: LayerWeights, x: Tensor) -> Tensor:
        if layer.post_norm is not None:
            x = rms_norm(x, layer.post_norm, self.shape.eps)
        if layer.router is not None:
            weights, shape = (layer.router, layer.gate_up, layer.down), self.shape
            chosen = shape.experts_per_token, shape.shares_sum_to_one
            return mix_experts(x, *weights, *chosen, self.activation)
        gate_up = self.products(x, layer.gate_up, layer.gate_up_bias)
        gate, up = gate_up.chunk(2, dim=-1)
        return self.products(self.activation(gate) * up, layer.down, layer.down_bias)

    def _projections(self, index: int, x: Tensor, angles: Sequence[CosSin]) -> Projections:
        layer, shape = self.layers[index], self.shape
        if layer.input_norm is not None:
            x = rms_norm(x, layer.input_norm, shape.eps)
        qkv = self.products(x, layer.qkv, layer.qkv_bias).view(x.shape[0], -1, shape.head_dim)
        heads, rope = shape.heads + shape.kv_heads, self.ropes[index]
        cos_sin = None if rope == NO_ROPE else angles[rope]
        turned, v = qkv[:, :heads], qkv[:, heads:]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = turned.split([shape.heads, shape.kv_heads], dim=1)
            q = _norm_heads(q, layer.q_norm, shape.eps)
            k = _norm_heads(k, layer.k_norm, shape.eps)
            return _turn(q, cos_sin), _turn(k, cos_sin), v
        # One rotation for both saves three kernels a layer.
        q, k = _turn(turned, cos_sin).split([shape.heads, shape.kv_heads], dim=1)
        return q, k, v


def _turn(x: Tensor, cos_sin: CosSin | None) -> Tensor:
    return x if cos_sin is None else rotate(x, cos_sin)


def _norm_heads(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norms heads `[N, heads, D]` each on its own (`weight` `[D]`) or all as one."""
    return rms_norm(x.reshape(len(x), -1, len(weight)), weight, eps).view(x.shape)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name == "silu":
        return F.silu
    from transformers.activations import ACT2FN  # seconds, and nearly all models are done with SiLU

    function: Callable[[Tensor], Tensor] = ACT2FN[name]
    return function
