"""Tiny models of every architecture that the compact decoder knows, their oddities in play."""

from __future__ import annotations

from typing import Any

import torch

from tests.tiny import tiny_model

WINDOW = 7
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
NARROW = {"use_sliding_window": True, "sliding_window": WINDOW}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SCALES = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 0.5}
BIASES = {"attention_bias": True, "mlp_bias": True}
GEMMA2 = {"query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0}
GEMMA3 = {"query_pre_attn_scalar": 20, "sliding_window_pattern": 3}

COMPACT: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", GEMMA2 | {"sliding_window": WINDOW, "final_logit_softcapping": 4.0}),
    "gemma3": ("gemma3_text", GEMMA3 | {"sliding_window": WINDOW}),
    "gemma3 capped": ("gemma3_text", GEMMA3 | {"final_logit_softcapping": 4.0}),
    "phi3": ("phi3", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}),
    "phi3 window": ("phi3", {"sliding_window": WINDOW}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", SCALES | BIASES | {"attention_multiplier": 0.2}),
    "smollm3": ("smollm3", NARROW),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe mixed": ("qwen3_moe", EXPERTS | {"decoder_sparse_step": 2} | NARROW),
    "mistral window": ("mistral", {"sliding_window": WINDOW}),
    "qwen2 window": ("qwen2", NARROW | {"max_window_layers": 2}),
    "llama biases": ("llama", {"mlp_bias": True}),
}
"""Name: transformers' model type, and what its configuration changes of `tests.tiny.SIZES`."""


def compact_model(name: str, **changes: Any) -> Any:
    """A random model whose norms and biases are random too, so that ignoring one shows."""
    kind, settings = COMPACT[name]
    model = tiny_model(kind, **(settings | changes))
    centre = 0.0 if "gemma" in kind else 1.0
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if "norm" in weight_name:
                weight.uniform_(centre - 0.5, centre + 0.5)
    return model
