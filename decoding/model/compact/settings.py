"""What a configuration says beside its weights, as the compact decoder reads it."""

from __future__ import annotations

import math
from typing import Any

from draftgym.decoding.model.interface import NO_ROPE, DecoderShape

SUPPORTED_MODELS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "granite",
    "smollm3",
)
"""Architectures that the compact decoder knows, as `config.json` calls them."""

GEMMA = ("gemma2", "gemma3_text")
"""Models whose norms multiply by 1 + weight, and whose embeddings are scaled by their width."""

SLIDING = "sliding_attention"

FIXED_ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles do not change with the length of the text."""

COMPACT_ROPES = (*FIXED_ROPES, "longrope")
"""Those that the compact decoder knows; `longrope` up to where its angles change."""


def context_limit(config: Any) -> int:
    """Most positions of a text."""
    longest, reach = int(config.max_position_embeddings), longrope_reach(config)
    return longest if reach is None else min(longest, reach)


def longrope_reach(config: Any) -> int | None:
    """Up to which length texts have the same angles, if those of longer ones are others.

    Beyond it, transformers turns by other factors and computes the text anew from its start.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    reaches = [
        int(part["original_max_position_embeddings"])
        for part in parts
        if part.get("rope_type") == "longrope"
    ]
    return min(reaches, default=None)


def decoder_shape(model: Any) -> DecoderShape:
    """The sizes and settings of a loaded transformers model."""
    config = model.config
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    has_experts = getattr(config, "num_experts_per_tok", None) is not None
    return DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=model.model.layers[0].self_attn.head_dim,
        vocab=model.lm_head.weight.shape[0],
        eps=config.rms_norm_eps,
        activation="silu" if activation == "swish" else activation,
        embedding_scale=_embedding_scale(config),
        residual_scale=float(getattr(config, "residual_multiplier", 1.0)),
        attention_scale=_attention_scale(config),
        attention_cap=config.attn_logit_softcapping if config.model_type == "gemma2" else None,
        logit_scale=1.0 / float(getattr(config, "logits_scaling", 1.0)),
        logit_cap=getattr(config, "final_logit_softcapping", None),
        experts_per_token=config.num_experts_per_tok if has_experts else 0,
        shares_sum_to_one=bool(getattr(config, "norm_topk_prob", False)),
        ropes=_ropes(config),
        windows=windows(config),
    )


def windows(config: Any) -> tuple[int, ...]:
    """How many positions each layer sees back, as `DecoderShape` has it."""
    window, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if not window:
        return ()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # those without types have one mask for all layers
        narrow = config.model_type in ("mistral", "phi3", "qwen3_moe")
        return (int(window),) * layers if narrow else ()
    found = tuple(int(window) if kind == SLIDING else 0 for kind in kinds)
    return found if any(found) else ()


def rope_kinds(config: Any) -> list[str | None]:
    """The layer types that have rotary embeddings of their own; [None] where all share one."""
    there = set(config.rope_parameters) & set(getattr(config, "layer_types", None) or ())
    return [kind for kind in ("full_attention", SLIDING) if kind in there] or [None]


def drafters_rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings as drafters copy them: where layer types differ, those that see all.

    Drafters rotate whole heads, by one position, and by angles that stay as they are. Of a target
    without such settings they copy its base alone.
    """
    own = {
        key: value
        for key, value in parameters.get("full_attention", parameters).items()
        if key != "partial_rotary_factor" and "mrope" not in key
    }
    if own.get("rope_type", "default") in FIXED_ROPES and "rope_theta" in own:
        return own
    return {"rope_type": "default", "rope_theta": float(own.get("rope_theta") or 10000.0)}


def _ropes(config: Any) -> tuple[int, ...]:
    kinds = rope_kinds(config)
    if len(kinds) > 1:
        return tuple(kinds.index(kind) for kind in config.layer_types)
    turns = (getattr(config, "no_rope_layers", None) or [])[
        : config.num_hidden_layers
    ]  # 1 for layers with rotary embedding
    return tuple(0 if turn else NO_ROPE for turn in turns) if not all(turns) else ()


def _embedding_scale(config: Any) -> float:
    if config.model_type in GEMMA:
        return math.sqrt(config.hidden_size)
    return float(getattr(config, "embedding_multiplier", 1.0))


def _attention_scale(config: Any) -> float | None:
    if config.model_type == "granite":
        return float(config.attention_multiplier)
    scalar = getattr(config, "query_pre_attn_scalar", None)
    return None if scalar is None else 1 / math.sqrt(scalar)
