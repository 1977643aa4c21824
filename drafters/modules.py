"""Building blocks of the neural drafters, named as their published checkpoints name them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.layers import (
    RotaryTable,
    Sight,
    additive_mask,
    attend,
    rotate,
)
from draftgym.decoding.model.fingerprint import hash_facts, hash_tensors, plain_rope, settings
from draftgym.drafters.positions.paths import Paths
from draftgym.drafters.vocabulary import to_maps

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
KeysValues = tuple[Tensor, Tensor]
"""Rotated keys and values of some rows, each `[..., G, D]`."""
Attend = Callable[[Tensor, KeysValues], Tensor]
"""Attention `[..., H * D]` of rows, from their queries `[..., H, D]` and their own keys, values."""


def usual_mlp_width(hidden: int) -> int:
    """Inner width of a gated MLP that is as large as a plain one of four times the width."""
    return 16 * math.ceil(hidden / 6)


class GatedMLP(nn.Module):
    """The SwiGLU MLP of Llama-like decoders."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d]` to `[..., d]`."""
        out: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


@dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """Sizes and wiring of a network that drafts from the target's hidden states.

    Attributes:
        kind: Which drafter, as arms call it.
        hidden_size: Width, d.
        intermediate_size: Width of the MLPs.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads.
        head_dim: Size of a head.
        rms_norm_eps: Epsilon of the norms.
        vocab_size: Target vocabulary, V.
        draft_vocab_size: Tokens that it can propose, Vd; V for all.
        max_position_embeddings: Longest sequence it can draft for.
        rope_parameters: Rotary settings (`rope_theta`, scaling).
        tap_layers: 0-based target layers whose outputs are fused.
    """

    kind: ClassVar[str]
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    vocab_size: int
    draft_vocab_size: int
    max_position_embeddings: int
    rope_parameters: dict[str, Any]
    tap_layers: tuple[int, ...]


class Projections(nn.Module):
    """Query, key, value and output projections, with optional norms of queries and keys.

    Args:
        config: Sizes.
        inputs: Width of what is projected (EAGLE-3 projects a pair, twice the hidden size).
        has_norms: Whether queries and keys are normed (Qwen3 style).
    """

    def __init__(self, config: DraftConfig, inputs: int, has_norms: bool) -> None:
        super().__init__()
        self.heads, self.dim = config.num_attention_heads, config.head_dim
        self.kv_heads, self.has_norms = config.num_key_value_heads, has_norms
        self.q_proj = nn.Linear(inputs, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(inputs, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(inputs, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=False)
        if has_norms:
            self.q_norm = nn.RMSNorm(self.dim, config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.dim, config.rms_norm_eps)

    def queries(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        """Rotated queries `[..., H, D]`."""
        q = self.q_proj(x).unflatten(-1, (self.heads, self.dim))
        return rotate(self.q_norm(q) if self.has_norms else q, cos_sin)

    def keys_values(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> KeysValues:
        """Rotated keys and values, each `[..., G, D]`."""
        split = (self.kv_heads, self.dim)
        k, v = self.k_proj(x).unflatten(-1, split), self.v_proj(x).unflatten(-1, split)
        return rotate(self.k_norm(k) if self.has_norms else k, cos_sin), v


class DraftLayer(nn.Module):
    """A decoder layer of a drafter; who its rows attend to is the caller's affair.

    Args:
        config: Sizes.
        inputs: Width of what is projected.
        has_norms: Whether queries and keys are normed.
    """

    def __init__(self, config: DraftConfig, inputs: int, has_norms: bool) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(size, eps)
        self.self_attn = Projections(config, inputs, has_norms)
        self.post_attention_layernorm = nn.RMSNorm(size, eps)
        self.mlp = GatedMLP(size, config.intermediate_size)

    def run(
        self, inputs: Tensor, residual: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        """The layer's output `[..., d]`, in drafting and in training.

        Args:
            inputs: What is projected `[..., inputs]`.
            residual: `[..., d]`.
            cos_sin: Angles of the rows, from `RotaryTable.at`.
            attend: Attention.
        """
        own = self.self_attn.keys_values(inputs, cos_sin)
        return self.finish(residual, attend(self.self_attn.queries(inputs, cos_sin), own))

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Residuals and MLP after attention, `[..., d]`."""
        mixed = residual + self.self_attn.o_proj(attended)
        out: Tensor = mixed + self.mlp(self.post_attention_layernorm(mixed))
        return out


class DraftNetwork(nn.Module):
    """What both drafters' networks have: fused taps, the draft vocabulary, whose tables they read.

    Args:
        config: Sizes.
        draft_ids: Target ids of the draft vocabulary, ascending `[Vd]`; None for the first Vd.
        own: Tables that the checkpoint brings instead of the target's (`EMBEDDING`, `HEAD`).
    """

    config: DraftConfig
    d2t: Tensor
    t2d: Tensor

    def __init__(
        self, config: DraftConfig, draft_ids: Tensor | None = None, own: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.config = config
        ids = torch.arange(config.draft_vocab_size) if draft_ids is None else draft_ids
        d2t, t2d = to_maps(ids, config.vocab_size)
        self.register_buffer("d2t", d2t)
        self.register_buffer("t2d", t2d)
        size = config.hidden_size
        self.embed_tokens = frozen_rows(config.vocab_size, size) if EMBEDDING in own else None

    def embedding(self, of_target: Tensor) -> Tensor:
        """The input embedding `[V, d]`: its own, or else the target's."""
        return of_target if self.embed_tokens is None else self.embed_tokens.weight


def network_fingerprint(network: DraftNetwork) -> str:
    """Hash of all that a network proposes with: weights, sizes, taps, rotary settings.

    How far its positions reach is the target's affair (`draftgym.drafters.fitting.widen`).
    """
    facts = settings(network.config) | {"kind": network.config.kind}
    del facts["max_position_embeddings"]
    facts["rope_parameters"] = plain_rope(network.config.rope_parameters)
    return hash_facts(facts, hash_tensors(network.state_dict()))


def frozen_rows(count: int, width: int) -> nn.Embedding:
    """A table `[count, width]` to load a published one into; training leaves it as it is."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.zeros(count, width), freeze=True)
    return table


def in_cache(cache: KVCache, layer: int, visible: Tensor | Paths | None) -> Attend:
    """Drafting's attention: over a cache, behind which the rows' keys and values are written.

    Args:
        cache: The cache.
        layer: Which of its layers.
        visible: As `additive_mask` takes it, or paths; None for rows that see everything.
    """

    def attend_in_cache(queries: Tensor, own: KeysValues) -> Tensor:
        keys, values = cache.write(layer, *own)
        if isinstance(visible, Paths):
            return visible.attend(queries, keys, values)
        mask = None if visible is None else additive_mask(visible, keys.shape[1], queries.dtype)
        return attend(queries, keys, values, Sight(0, mask))

    return attend_in_cache


def block_attention(
    q: Tensor, context: KeysValues, context_visible: Tensor, own: KeysValues | None
) -> Tensor:
    """Training's attention: many query blocks over a shared context and each block's own keys.

    EAGLE-3's training-time test and DFlash's random anchors are the same shape: R blocks of Q
    queries that share one context of S keys under a mask, and see P keys of their own.

    Args:
        q: Queries `[B, R, Q, H, D]`.
        context: Keys and values `[B, S, G, D]`.
        context_visible: Bool `[B, R, S]`, True = the block sees that context position.
        own: Keys and values `[B, R, P, G, D]` that only their block sees, or None.

    Returns:
        `[B, R, Q, H * D]`.
    """
    batch, blocks, width, heads, dim = q.shape
    groups = context[0].shape[2]
    share = heads // groups
    q = q.view(batch, blocks, width, groups, share, dim) / math.sqrt(dim)
    rows = q.permute(0, 3, 1, 2, 4, 5).flatten(2, 4)  # [B, G, R * Q * share, D]
    k_context, v_context = (x.transpose(1, 2) for x in context)  # [B, G, S, D]
    scores = (rows @ k_context.transpose(2, 3)).float()
    scores = scores.view(batch, groups, blocks, width * share, -1)
    scores = scores.masked_fill(~context_visible[:, None, :, None, :], float("-inf"))
    if own is not None:
        k_own, v_own = (x.permute(0, 3, 1, 2, 4) for x in own)  # [B, G, R, P, D]
        block_rows = rows.view(batch, groups, blocks, width * share, dim)
        own_scores = (block_rows @ k_own.transpose(3, 4)).float()
        scores = torch.cat([scores, own_scores], dim=-1)
    weights = scores.softmax(-1).to(rows.dtype)
    size = k_context.shape[2]
    out = weights[..., :size].flatten(2, 3) @ v_context
    out = out.view(batch, groups, blocks, width * share, dim)
    if own is not None:
        out = out + weights[..., size:] @ v_own
    out = out.view(batch, groups, blocks, width, share, dim).permute(0, 2, 3, 1, 4, 5)
    return out.reshape(batch, blocks, width, heads * dim)


def rotary_table(rope: dict[str, Any], head_dim: int, positions: int) -> RotaryTable:
    """The table for a config's `rope_parameters` (theta and scaling), through transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", **rope},
        max_position_embeddings=positions,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(positions)[None])
    return RotaryTable(cos[0], sin[0])
