"""From a transformers causal LM to the compact decoder.

Reading configs, shards, GGUF and rotary scaling stays transformers' work; this module only picks
the tensors out of the loaded model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.model.compact.layers import RotaryTable
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.transformer import Decoder, LayerWeights
from draftgym.decoding.model.interface import DecoderShape

SUPPORTED_MODELS = ("llama", "mistral", "qwen2", "qwen3")


def context_limit(config: Any) -> int:
    """Most positions the model can attend to without a sliding window coming into play."""
    limit = int(config.max_position_embeddings)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else config.model_type == "mistral"
    window = getattr(config, "sliding_window", None)
    return min(limit, int(window)) if slides and window else limit


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
    layers = [_moved(layer_weights(layer, dtype), where) for layer in body.layers]
    embedding = body.embed_tokens.weight.detach().to(where, dtype)
    tied = model.lm_head.weight.data_ptr() == body.embed_tokens.weight.data_ptr()
    head = embedding if tied else model.lm_head.weight.detach().to(where, dtype)
    rotary = rotary_table(model, dtype).to(dtype, where)
    norm = _tensor(body.norm.weight, dtype).to(where)
    return Decoder(decoder_shape(model), layers, embedding, norm, head, rotary, products)


def _moved(layer: LayerWeights, device: torch.device) -> LayerWeights:
    """The same weights on another device."""
    parts = {name: value for name, value in vars(layer).items() if value is not None}
    return replace(layer, **{name: value.to(device) for name, value in parts.items()})


def decoder_shape(model: Any) -> DecoderShape:
    """The sizes of a loaded transformers model."""
    config = model.config
    return DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=model.model.layers[0].self_attn.head_dim,
        vocab=model.lm_head.weight.shape[0],
        eps=config.rms_norm_eps,
        activation="silu" if config.hidden_act == "swish" else config.hidden_act,
    )


def rotary_table(model: Any, dtype: torch.dtype) -> RotaryTable:
    """Its rotary embedding at all positions that it can attend to."""
    device = model.model.embed_tokens.weight.device
    positions = torch.arange(context_limit(model.config), device=device)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, device=device), positions)
    return RotaryTable(cos[0].to(dtype), sin[0].to(dtype))


def layer_weights(layer: Any, dtype: torch.dtype) -> LayerWeights:
    """The weights of one of its decoder layers."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [projection.bias for projection in projections if projection.bias is not None]
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    q_norm, k_norm = (None if norm is None else _tensor(norm.weight, dtype) for norm in norms)
    return LayerWeights(
        input_norm=_tensor(layer.input_layernorm.weight, dtype),
        qkv=_tensor(torch.cat([projection.weight for projection in projections]), dtype),
        qkv_bias=_tensor(torch.cat(biases), dtype) if biases else None,
        q_norm=q_norm,
        k_norm=k_norm,
        out=_tensor(attention.o_proj.weight, dtype),
        out_bias=_tensor(attention.o_proj.bias, dtype),
        post_norm=_tensor(layer.post_attention_layernorm.weight, dtype),
        gate_up=_tensor(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), dtype),
        down=_tensor(mlp.down_proj.weight, dtype),
    )


def _tensor(weight: Tensor | None, dtype: torch.dtype) -> Any:
    return None if weight is None else weight.detach().to(dtype).contiguous()
