"""Checkpoints made straight from the published formats, without any code of the project.

Names, shapes and config keys are typed out here from what SafeAILab/SpecForge, speculators and
z-lab publish. That the project reads these folders is evidence that it reads public ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """Sizes of a drafter of a target with hidden size 32, 61 tokens and 6 layers."""

    heads: int
    groups: int
    head_dim: int
    mlp: int
    draft_vocab: int
    dflash_layers: int
    hidden: int = 32
    vocab: int = 61


SIZES = {
    "small": Size(heads=4, groups=2, head_dim=8, mlp=48, draft_vocab=40, dflash_layers=2),
    # head_dim is not hidden / heads, and all tokens can be drafted.
    "odd": Size(heads=2, groups=1, head_dim=24, mlp=40, draft_vocab=61, dflash_layers=1),
}
FORMATS = ("native-eagle3", "speculators-eagle3", "native-dflash", "speculators-dflash")
EAGLE3_TAPS = 3
DFLASH_TAPS = 2


def draft_ids(size: Size) -> list[int]:
    """Target ids that can be drafted: with gaps, ascending."""
    every = list(range(size.vocab))
    return every if size.draft_vocab == size.vocab else [i for i in every if i % 3 != 1][:40]


def maps(size: Size) -> Shapes:
    """The vocabulary maps, absent when all tokens can be drafted."""
    if size.draft_vocab == size.vocab:
        return {}
    return {"d2t": (size.draft_vocab,), "t2d": (size.vocab,)}


def eagle3_shapes(size: Size, layer: str) -> Shapes:
    """Tensors of an EAGLE-3 head whose layer is called `layer`."""
    h, q, kv = size.hidden, size.heads * size.head_dim, size.groups * size.head_dim
    return {
        "fc.weight": (h, EAGLE3_TAPS * h),
        f"{layer}.hidden_norm.weight": (h,),
        f"{layer}.input_layernorm.weight": (h,),
        f"{layer}.self_attn.q_proj.weight": (q, 2 * h),
        f"{layer}.self_attn.k_proj.weight": (kv, 2 * h),
        f"{layer}.self_attn.v_proj.weight": (kv, 2 * h),
        f"{layer}.self_attn.o_proj.weight": (h, q),
        f"{layer}.post_attention_layernorm.weight": (h,),
        f"{layer}.mlp.gate_proj.weight": (size.mlp, h),
        f"{layer}.mlp.up_proj.weight": (size.mlp, h),
        f"{layer}.mlp.down_proj.weight": (h, size.mlp),
        "norm.weight": (h,),
        "lm_head.weight": (size.draft_vocab, h),
        **maps(size),
    }


def dflash_shapes(size: Size) -> Shapes:
    """Tensors of a DFlash drafter, without embedding and head."""
    h, q, kv = size.hidden, size.heads * size.head_dim, size.groups * size.head_dim
    shapes: Shapes = {
        "fc.weight": (h, DFLASH_TAPS * h),
        "hidden_norm.weight": (h,),
        "norm.weight": (h,),
    }
    for i in range(size.dflash_layers):
        shapes |= {
            f"layers.{i}.input_layernorm.weight": (h,),
            f"layers.{i}.post_attention_layernorm.weight": (h,),
            f"layers.{i}.self_attn.q_proj.weight": (q, h),
            f"layers.{i}.self_attn.k_proj.weight": (kv, h),
            f"layers.{i}.self_attn.v_proj.weight": (kv, h),
            f"layers.{i}.self_attn.o_proj.weight": (h, q),
            f"layers.{i}.self_attn.q_norm.weight": (size.head_dim,),
            f"layers.{i}.self_attn.k_norm.weight": (size.head_dim,),
            f"layers.{i}.mlp.gate_proj.weight": (size.mlp, h),
            f"layers.{i}.mlp.up_proj.weight": (size.mlp, h),
            f"layers.{i}.mlp.down_proj.weight": (h, size.mlp),
        }
    return shapes


def shapes_of(form: str, size: Size) -> Shapes:
    """All tensors of a format."""
    table = {"embed_tokens.weight": (size.vocab, size.hidden)}
    if form == "native-eagle3":
        return eagle3_shapes(size, "midlayer")
    if form == "speculators-eagle3":
        return eagle3_shapes(size, "layers.0") | table
    if form == "native-dflash":
        return dflash_shapes(size) | maps(size)
    head = {"lm_head.weight": (size.draft_vocab, size.hidden)}
    return dflash_shapes(size) | maps(size) | table | head


def decoder_keys(size: Size, model_type: str, layers: int) -> dict[str, Any]:
    """Keys of a Llama-like decoder."""
    return {
        "model_type": model_type,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 5,
        "head_dim": size.head_dim,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "initializer_range": 0.02,
        "intermediate_size": size.mlp,
        "max_position_embeddings": 2048,
        "num_attention_heads": size.heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": size.groups,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": size.vocab,
    }


def speculators_config(algorithm: str, tokens: int) -> dict[str, Any]:
    """The part about the verifier."""
    return {
        "algorithm": algorithm,
        "default_proposal_method": "greedy",
        "proposal_methods": [
            {
                "proposal_type": "greedy",
                "speculative_tokens": tokens,
                "verifier_accept_k": 1,
                "accept_tolerance": 0.0,
            }
        ],
        "verifier": {"name_or_path": "some/verifier", "architectures": ["LlamaForCausalLM"]},
    }


def config_of(form: str, size: Size) -> dict[str, Any]:
    """The `config.json` of a format, for a target with 6 layers."""
    if form == "native-eagle3":
        return decoder_keys(size, "llama", 1) | {
            "architectures": ["LlamaForCausalLMEagle3"],
            "draft_vocab_size": size.draft_vocab,
            "pad_token_id": 0,
            "torch_dtype": "float32",
            "transformers_version": "4.28.1",
        }
    if form == "speculators-eagle3":
        return {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "speculators_version": "0.3.0",
            "draft_vocab_size": size.draft_vocab,
            "norm_before_residual": False,
            "norm_before_fc": False,
            "fc_norm": False,
            "norm_output": False,
            "embed_requires_grad": False,
            "target_hidden_size": None,
            "eagle_aux_hidden_state_layer_ids": [2, 3, 5],
            "transformer_layer_config": decoder_keys(size, "llama", 1),
            "speculators_config": speculators_config("eagle3", 3),
            "torch_dtype": "float32",
        }
    layers = size.dflash_layers
    qwen = decoder_keys(size, "qwen3", layers) | {
        "attention_dropout": 0.0,
        "layer_types": ["full_attention"] * layers,
        "max_window_layers": layers,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    if form == "native-dflash":
        return qwen | {
            "architectures": ["DFlashDraftModel"],
            "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
            "block_size": 5,
            "dflash_config": {"mask_token_id": 3, "target_layer_ids": [1, 3]},
            "dtype": "float32",
            "num_target_layers": 6,
        }
    return {
        "architectures": ["DFlashSpeculator"],
        "speculators_model_type": "dflash",
        "speculators_version": "0.3.0",
        "transformer_layer_config": qwen,
        "draft_vocab_size": size.draft_vocab,
        "block_size": 5,
        "target_hidden_size": None,
        "aux_hidden_state_layer_ids": [2, 4],
        "mask_token_id": 3,
        "sliding_window_non_causal": False,
        "sample_from_anchor": False,
        "speculators_config": speculators_config("dflash", 4),
        "torch_dtype": "float32",
    }


def tensors_of(
    form: str, size: Size, embedding: Tensor | None = None, head: Tensor | None = None
) -> dict[str, Tensor]:
    """Random weights under the published names; the target's tables where a format copies them."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.tensor(draft_ids(size))
    made: dict[str, Tensor] = {}
    for name, shape in shapes_of(form, size).items():
        if name == "d2t":
            made[name] = ids - torch.arange(len(ids))
        elif name == "t2d":
            made[name] = torch.isin(torch.arange(size.vocab), ids)
        elif name == "embed_tokens.weight" and embedding is not None:
            made[name] = embedding.clone()
        elif name == "lm_head.weight" and form.endswith("dflash") and head is not None:
            made[name] = head[ids].clone()
        elif "norm" in name:
            made[name] = 1 + 0.2 * torch.randn(shape, generator=generator)
        else:
            made[name] = 0.2 * torch.randn(shape, generator=generator)
    return made


def write_checkpoint(folder: Path, body: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Writes a folder as the Hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(body, indent=2))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
