"""From a transformers causal LM to the compact decoder.

Reading configs, shards, GGUF and rotary scaling stays transformers' work; this module only picks
the tensors out of the loaded model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.layers import RotaryTable
from draftgym.decoding.model.products import Products
from draftgym.decoding.model.transformer import Decoder, DecoderShape, LayerWeights

SUPPORTED_MODELS = ("llama", "mistral", "qwen2", "qwen3")


def context_limit(config: Any) -> int:
    """Most positions the model can attend to without a sliding window coming into play."""
    limit = int(config.max_position_embeddings)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else config.model_type == "mistral"
    window = getattr(config, "sliding_window", None)
    return min(limit, int(window)) if slides and window else limit


def check_supported(config: Any, name: str) -> None:
    """Raises `DraftgymError` when the model is not a rotary decoder that we can run."""
    kind = getattr(config, "model_type", "unknown")
    if kind not in SUPPORTED_MODELS:
        raise DraftgymError(
            f"target {name!r} is a {kind!r} model",
            f"name a causal LM of one of these kinds: {', '.join(SUPPORTED_MODELS)}",
        )
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling in ("dynamic", "longrope"):
        raise DraftgymError(
            f"target {name!r} uses {scaling!r} rotary scaling, whose angles change with the length",
            "name a target with default, linear, llama3 or yarn rotary embedding",
        )


def extract_decoder(model: Any, dtype: torch.dtype, products: Products | None = None) -> Decoder:
    """Builds the compact decoder from a loaded transformers model.

    Args:
        model: A `...ForCausalLM` of one of `SUPPORTED_MODELS`.
        dtype: Dtype of the result.
        products: How rows are multiplied with its weights; default: by torch's own product.

    Returns:
        A decoder that computes what the model computes, within rounding.
    """
    config, body = model.config, model.model
    attention = body.layers[0].self_attn
    head_dim = attention.head_dim
    shape = DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab=model.lm_head.weight.shape[0],
        eps=config.rms_norm_eps,
    )
    layers = [_layer_weights(layer, dtype) for layer in body.layers]
    embedding = body.embed_tokens.weight.detach().to(dtype)
    tied = model.lm_head.weight.data_ptr() == body.embed_tokens.weight.data_ptr()
    head = embedding if tied else model.lm_head.weight.detach().to(dtype)
    positions = torch.arange(context_limit(config))[None]
    cos, sin = body.rotary_emb(torch.zeros(1, dtype=torch.float32), positions)
    rotary = RotaryTable(cos[0].to(dtype), sin[0].to(dtype))
    norm = _tensor(body.norm.weight, dtype)
    return Decoder(shape, layers, embedding, norm, head, rotary, products)


def _layer_weights(layer: Any, dtype: torch.dtype) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [projection.bias for projection in projections if projection.bias is not None]
    if mlp.down_proj.bias is not None:
        raise DraftgymError("the target's MLP has biases", "name a target without MLP biases")
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


def check_finite(decoder: Decoder, name: str) -> None:
    """Raises `DraftgymError` when any weight is NaN or infinite."""
    named = [
        ("embedding", decoder.embedding),
        ("head", decoder.head),
        ("final norm", decoder.final_norm),
    ]
    for index, layer in enumerate(decoder.layers):
        named += [
            (f"layer {index} {key}", value)
            for key, value in vars(layer).items()
            if value is not None
        ]
    for label, tensor in named:
        if not bool(torch.isfinite(tensor).all()):
            raise DraftgymError(
                f"target {name!r} has NaN or infinite weights ({label})",
                "download or convert the model again; its files are damaged",
            )


def fingerprint(decoder: Decoder) -> str:
    """A short hash that tells targets apart, the same in every dtype.

    Drafter checkpoints carry it, so that a drafter trained for another target is refused. It reads
    a sample of the weights, rounded to bfloat16.
    """
    digest = hashlib.sha256(repr(decoder.shape).encode())
    sample = [decoder.embedding[::97], decoder.final_norm]
    sample += [tensor for layer in decoder.layers for tensor in (layer.post_norm, layer.down[::61])]
    for tensor in sample:
        digest.update(_rounded_bytes(tensor))
    return digest.hexdigest()[:16]


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named tensors, the same in every dtype (floats are rounded to bfloat16)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        exact = tensor.contiguous().numpy().tobytes() if not tensor.is_floating_point() else None
        digest.update(exact or _rounded_bytes(tensor))
    return digest.hexdigest()[:16]


def _rounded_bytes(tensor: Tensor) -> bytes:
    rounded = tensor.to(torch.bfloat16).contiguous().view(torch.int16)
    return bytes(rounded.numpy().tobytes())
