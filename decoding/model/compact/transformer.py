"""A compact rotary decoder: one ragged forward pass over several sequences.

Any causal LM of transformers with the Llama layout runs here (Llama, Mistral, Qwen2, Qwen3).
Weights and rotary tables are taken from the transformers model; what is ours is the pass itself:
the rows of all sequences are packed for the linear layers, and each sequence attends to its own
cache, so sequences with different numbers of new tokens share one call.

Notation: N = rows of the call over all sequences, n = rows of one sequence, d = hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.layers import (
    CausalMask,
    RotaryTable,
    additive_mask,
    attend,
    causal_mask,
    rms_norm,
    rotate,
)
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.interface import DecoderShape, NewRows, PassOutput


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one decoder layer, projections fused."""

    input_norm: Tensor  # [d]
    qkv: Tensor  # [(H + 2G) * D, d]
    qkv_bias: Tensor | None  # [(H + 2G) * D]
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    out: Tensor  # [d, H * D]
    out_bias: Tensor | None  # [d]
    post_norm: Tensor  # [d]
    gate_up: Tensor  # [2 * I, d]
    down: Tensor  # [d, I]


class Decoder:
    """Weights of a rotary decoder and its forward pass (a `TargetDecoder`)."""

    draws_trees = True

    def __init__(
        self,
        shape: DecoderShape,
        layers: Sequence[LayerWeights],
        embedding: Tensor,
        final_norm: Tensor,
        head: Tensor,
        rotary: RotaryTable,
        products: Products | None = None,
    ) -> None:
        self.shape = shape
        self.products = products or Products()
        self.activation = _activation(shape.activation)
        self.layers = layers
        self.embedding = embedding  # [vocab, d]
        self.final_norm = final_norm  # [d]
        self.head = head  # [vocab, d]
        self.rotary = rotary

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights, cache and hidden states."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.device

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states; see `TargetDecoder.logits`."""
        return self.products(hidden, self.head).float()

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence."""
        shape = self.shape
        sizes = (shape.layers, shape.kv_heads, capacity, shape.head_dim)
        return KVCache(*sizes, self.dtype, self.device)

    @torch.inference_mode()
    def forward(
        self, batch: Sequence[NewRows], tap_layers: Sequence[int] = (), with_logits: bool = True
    ) -> list[PassOutput]:
        """One pass; see `TargetDecoder.forward`."""
        counts = [rows.tokens.shape[0] for rows in batch]
        masks = [self._mask(rows) for rows in batch]
        positions = torch.cat([_positions(rows) for rows in batch])
        cos_sin = self.rotary.at(positions)
        x = F.embedding(torch.cat([rows.tokens for rows in batch]), self.embedding)
        taps: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            x = self._layer(index, layer, x, cos_sin, batch, counts, masks)
            if index in tap_layers:
                taps[index] = x
        tapped = x.new_empty(len(x), 0, self.shape.hidden)
        if tap_layers:
            tapped = torch.stack([taps[i] for i in tap_layers], dim=1)
        return self._outputs(batch, counts, x, tapped, with_logits)

    @torch.inference_mode()
    def encode(self, rows: NewRows) -> None:
        """Writes keys and values of new rows, as `forward`, and computes nothing else.

        The last layer's attention and MLP, the last norm and the LM head serve the rows themselves;
        no later position reads them.
        """
        counts, masks = [rows.tokens.shape[0]], [self._mask(rows)]
        cos_sin = self.rotary.at(_positions(rows))
        x = F.embedding(rows.tokens, self.embedding)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers[:last]):
            x = self._layer(index, layer, x, cos_sin, [rows], counts, masks)
        _, keys, values = self._projections(self.layers[last], x, cos_sin)
        rows.cache.write(last, keys, values)

    def _layer(
        self,
        index: int,
        layer: LayerWeights,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        batch: Sequence[NewRows],
        counts: list[int],
        masks: Sequence[Tensor | CausalMask | None],
    ) -> Tensor:
        q, k, v = self._projections(layer, x, cos_sin)
        attended = []
        for rows, mask, q_i, k_i, v_i in zip(
            batch, masks, q.split(counts), k.split(counts), v.split(counts), strict=True
        ):
            keys, values = rows.cache.write(index, k_i, v_i)
            attended.append(attend(q_i, keys, values, mask))
        mixed = attended[0] if len(attended) == 1 else torch.cat(attended)
        x = x + self.products(mixed, layer.out, layer.out_bias)
        gate_up = self.products(rms_norm(x, layer.post_norm, self.shape.eps), layer.gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return x + self.products(self.activation(gate) * up, layer.down)

    def _projections(
        self, layer: LayerWeights, x: Tensor, cos_sin: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries `[N, H, D]`, rotated keys and values, both `[N, G, D]`."""
        shape = self.shape
        normed = rms_norm(x, layer.input_norm, shape.eps)
        qkv = self.products(normed, layer.qkv, layer.qkv_bias).view(x.shape[0], -1, shape.head_dim)
        q, k, v = qkv.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rotate(rms_norm(q, layer.q_norm, shape.eps), cos_sin)
            k = rotate(rms_norm(k, layer.k_norm, shape.eps), cos_sin)
        else:  # one rotation for both saves three kernels a layer
            q, k = rotate(qkv[:, : shape.heads + shape.kv_heads], cos_sin).split(
                [shape.heads, shape.kv_heads], dim=1
            )
        return q, k, v

    def _mask(self, rows: NewRows) -> Tensor | CausalMask | None:
        """Additive mask `[n, length + n]` of one sequence; None when nothing is hidden."""
        n = rows.tokens.shape[0]
        if rows.visible is None:
            return causal_mask(n, rows.cache.length, self.dtype, self.device)
        return additive_mask(rows.visible, rows.cache.length + n, self.dtype)

    def _outputs(
        self,
        batch: Sequence[NewRows],
        counts: list[int],
        x: Tensor,
        taps: Tensor,
        with_logits: bool,
    ) -> list[PassOutput]:
        pieces = x.split(counts)
        wanted = [piece[rows.logits_from :] for piece, rows in zip(pieces, batch, strict=True)]
        hidden = rms_norm(torch.cat(wanted), self.final_norm, self.shape.eps)
        sizes = [piece.shape[0] for piece in wanted]
        if with_logits:
            logits = self.logits(hidden).split(sizes)
        else:
            logits = (hidden.new_empty(0, self.shape.vocab),) * len(sizes)
        return [
            PassOutput(*parts)
            for parts in zip(logits, hidden.split(sizes), taps.split(counts), strict=True)
        ]


def _positions(rows: NewRows) -> Tensor:
    if rows.positions is not None:
        return rows.positions
    start, device = rows.cache.length, rows.tokens.device
    return torch.arange(start, start + rows.tokens.shape[0], device=device)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name == "silu":
        return F.silu
    from transformers.activations import ACT2FN  # seconds, and nearly all models are done with SiLU

    function: Callable[[Tensor], Tensor] = ACT2FN[name]
    return function
