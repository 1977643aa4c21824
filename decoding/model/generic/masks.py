"""Who sees whom in a drafted tree, in the form that transformers' models take.

A mask of four axes is used as it is, and a model whose layers attend differently takes one for each
kind of layer. Windows count positions: nodes of a tree share positions, not rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ATTENTIONS = ("sdpa", "eager")
"""Implementations of attention that take masks of four axes."""

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


def attention_kinds(config: Any) -> frozenset[str]:
    """The kinds of a model's layers, as its configuration names them."""
    if kinds := getattr(config, "layer_types", None):
        return frozenset(kinds)
    if getattr(config, "sliding_window", None):
        return frozenset({SLIDING})
    return frozenset({CHUNKED if getattr(config, "attention_chunk_size", None) else FULL})


def takes_trees(config: Any) -> bool:
    """Whether there are masks for a tree in all of a model's layers, in a form that it may take."""
    known = attention_kinds(config) <= {FULL, SLIDING, CHUNKED}
    return known and config._attn_implementation in ATTENTIONS


def tree_masks(
    config: Any, visible: Tensor, positions: Tensor, cached: int, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Masks of a tree behind cached rows.

    Args:
        config: The settings of the model's text part.
        visible: Who sees whom among the new rows, bool `[n, n]`.
        positions: Their absolute positions `[n]`.
        cached: Keys before them, which all of them see as far as their window reaches.
        dtype: Dtype of the queries.

    Returns:
        One mask `[1, 1, n, cached + n]`, or one for each kind of layer: bool, or additive where
        attention is computed step by step.
    """
    before = torch.arange(cached, device=positions.device)
    keys = torch.cat([before, positions])
    seen = torch.cat([visible.new_ones(len(positions), cached), visible], dim=1)
    reach = positions[:, None] - keys
    masks = {}
    for kind in attention_kinds(config):
        mask = seen
        if kind == SLIDING and config.sliding_window:
            mask = seen & (reach < config.sliding_window)
        elif kind == CHUNKED:
            size = config.attention_chunk_size
            mask = seen & (positions[:, None] // size == keys // size)
        if config._attn_implementation == "eager":
            lowest = torch.finfo(dtype).min
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, lowest)
        masks[kind] = mask[None, None]
    return masks if len(masks) > 1 else next(iter(masks.values()))
