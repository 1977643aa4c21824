"""From a transformers causal LM to the compact decoder.

Reading configs, shards, GGUF and rotary scaling stays transformers' work; this module only picks
the tensors out of the loaded model, and the settings out of its configuration
(`draftgym.decoding.model.compact.settings`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.model.compact.layers import RotaryTable
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.rows import LayerWeights
from draftgym.decoding.model.compact.settings import (
    GEMMA,
    context_limit,
    decoder_shape,
    rope_kinds,
)
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.generic.spread import present


def extract_decoder(
    model: Any,
    dtype: torch.dtype,
    products: Products | None = None,
    device: torch.device | None = None,
) -> Decoder:
    """Builds the compact decoder from a loaded transformers model.

    Args:
        model: A `...ForCausalLM` of one of `SUPPORTED_MODELS`.
        dtype: Dtype of the result.
        products: How rows are multiplied with its weights; default: by torch's own product.
        device: Where it shall compute; default: where the model lies.

    Returns:
        A decoder that computes what the model computes, within rounding.
    """
    body = model.model
    where = device or body.embed_tokens.weight.device
    layers = [
        _moved(layer_weights(model, index, dtype), where) for index in range(len(body.layers))
    ]
    embedding = body.embed_tokens.weight.detach().to(where, dtype)
    tied = model.lm_head.weight.data_ptr() == body.embed_tokens.weight.data_ptr()
    head = embedding if tied else model.lm_head.weight.detach().to(where, dtype)
    rotaries = [table.to(dtype, where) for table in rotary_tables(model, dtype)]
    norm = final_norm(model, dtype).to(where)
    scale = embedding_scale(model, dtype)
    return Decoder(decoder_shape(model), layers, embedding, norm, head, rotaries, products, scale)


def spread_weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights of the decoder that `extract_decoder` would build, by name, one after the other.

    For a model that lies on several devices, or partly on none.
    """
    body = model.model
    tables = {"embedding": body.embed_tokens, "head": model.lm_head}
    for name, module in tables.items():
        with present(module):
            yield name, module.weight.detach().to(dtype)
    with present(body.norm):
        yield "final_norm", final_norm(model, dtype)
    for index, layer in enumerate(body.layers):
        with present(layer):
            for name, value in vars(layer_weights(model, index, dtype)).items():
                if value is not None:
                    yield f"{index}.{name}", value


def _moved(layer: LayerWeights, device: torch.device) -> LayerWeights:
    """The same weights on another device."""
    parts = {name: value for name, value in vars(layer).items() if value is not None}
    return replace(layer, **{name: value.to(device) for name, value in parts.items()})


def rotary_tables(model: Any, dtype: torch.dtype) -> list[RotaryTable]:
    """Its rotary embeddings at all of its positions, as `shape.ropes` counts them."""
    device = model.model.embed_tokens.weight.device
    positions = torch.arange(context_limit(model.config), device=device)[None]
    tables = []
    for kind in rope_kinds(model.config):
        options = {} if kind is None else {"layer_type": kind}
        cos, sin = model.model.rotary_emb(torch.zeros(1, device=device), positions, **options)
        tables.append(RotaryTable(cos[0].to(dtype), sin[0].to(dtype)))
    return tables


def embedding_scale(model: Any, dtype: torch.dtype) -> float | None:
    """The scale of its embeddings where it is rounded to the dtype, as Gemma was trained.

    None where it is the shape's, as it is. A model that is in memory in bfloat16 multiplies by the
    rounded one whatever dtype its weights are then read in.
    """
    scale = getattr(model.model.embed_tokens, "embed_scale", None)
    if scale is None and model.config.model_type in GEMMA:  # older releases scale in the pass
        scale = torch.tensor(model.config.hidden_size**0.5)
    return None if scale is None else float(scale.to(dtype))


def final_norm(model: Any, dtype: torch.dtype) -> Tensor:
    """The weight of its last norm."""
    norm: Tensor = _Layer(model, model.model, dtype).norm("norm")
    return norm


def layer_weights(model: Any, index: int, dtype: torch.dtype) -> LayerWeights:
    """The weights of one of its decoder layers."""
    body = model.model.layers[index]
    layer = _Layer(model, body, dtype)
    attention, mlp = _Layer(model, body.self_attn, dtype), _Layer(model, body.mlp, dtype)
    # Where the MLP has a norm of its own behind it, what stands behind attention is one, too.
    behind = hasattr(body, "post_feedforward_layernorm")
    before_mlp = "pre_feedforward_layernorm" if behind else "post_attention_layernorm"
    parts = ("qkv_proj",) if hasattr(body.self_attn, "qkv_proj") else ("q_proj", "k_proj", "v_proj")
    return LayerWeights(
        input_norm=layer.norm("input_layernorm"),
        qkv=attention.fused("weight", *parts),
        qkv_bias=attention.fused("bias", *parts),
        q_norm=attention.norm("q_norm"),
        k_norm=attention.norm("k_norm"),
        out=attention.fused("weight", "o_proj"),
        out_bias=attention.fused("bias", "o_proj"),
        post_norm=layer.norm(before_mlp),
        attended_norm=layer.norm("post_attention_layernorm") if behind else None,
        mlp_norm=layer.norm("post_feedforward_layernorm"),
        **_mlp_weights(mlp),
    )


def _mlp_weights(mlp: _Layer) -> dict[str, Any]:
    """The fields of `LayerWeights` about an MLP, or a mixture of them."""
    if hasattr(mlp.module, "experts"):
        experts = _Layer(mlp.model, mlp.module.experts, mlp.dtype)
        return {
            "router": mlp.fused("weight", "gate"),
            "gate_up": experts.tensor(experts.module.gate_up_proj),
            "down": experts.tensor(experts.module.down_proj),
        }
    fused = hasattr(mlp.module, "gate_up_proj")
    parts = ("gate_up_proj",) if fused else ("gate_proj", "up_proj")
    return {
        "gate_up": mlp.fused("weight", *parts),
        "gate_up_bias": mlp.fused("bias", *parts),
        "down": mlp.fused("weight", "down_proj"),
        "down_bias": mlp.fused("bias", "down_proj"),
    }


class _Layer:
    """A module of the transformers model, whose tensors are read in one dtype."""

    def __init__(self, model: Any, module: Any, dtype: torch.dtype) -> None:
        self.model, self.module, self.dtype = model, module, dtype

    def fused(self, what: str, *names: str) -> Any:
        """Weights or biases of linear layers, one behind the other; None where there are none."""
        all_of_them = [getattr(getattr(self.module, name), what, None) for name in names]
        found: list[Any] = [tensor for tensor in all_of_them if tensor is not None]
        return self.tensor(found[0] if len(found) == 1 else torch.cat(found)) if found else None

    def norm(self, name: str) -> Any:
        """The weight of a norm as the pass multiplies by it; None where there is none."""
        norm = getattr(self.module, name, None)
        if norm is None:
            return None
        if self.model.config.model_type in GEMMA:
            return self.tensor(1 + norm.weight.float())
        return self.tensor(norm.weight)

    def tensor(self, weight: Tensor) -> Tensor:
        """The weight, detached."""
        return weight.detach().to(self.dtype).contiguous()
