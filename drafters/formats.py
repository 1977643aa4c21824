"""The published `config.json` of each kind of drafter, read and written.

EAGLE-3 as SafeAILab, SpecForge and SGLang write it, DFlash as z-lab writes it. Our own additions
sit under the key `draftgym`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from drafters import eagle3
from drafters.dflash import DFlashConfig
from drafters.eagle3 import Eagle3Config

EAGLE3_ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
DFLASH_ARCHITECTURES = ("DFlashDraftModel",)


def _rope(body: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, from the new key or the two old ones."""
    if body.get("rope_parameters"):
        return dict(body["rope_parameters"])
    scaling = dict(body.get("rope_scaling") or {})
    if "type" in scaling:
        scaling["rope_type"] = scaling.pop("type")
    return {"rope_theta": body.get("rope_theta", 10000.0)} | scaling


def _rope_json(rope: dict[str, Any]) -> dict[str, Any]:
    """Both spellings: older serving stacks read only `rope_theta` and `rope_scaling`."""
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    plain = scaling.get("rope_type", "default") == "default"
    return {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if plain else scaling,
        "rope_parameters": {"rope_type": "default"} | rope,
    }


def _shared_config(body: dict[str, Any]) -> dict[str, Any]:
    heads = body["num_attention_heads"]
    return {
        "hidden_size": body["hidden_size"],
        "intermediate_size": body["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": body.get("num_key_value_heads", heads),
        "head_dim": body.get("head_dim") or body["hidden_size"] // heads,
        "rms_norm_eps": body.get("rms_norm_eps", 1e-6),
        "vocab_size": body["vocab_size"],
        "max_position_embeddings": body["max_position_embeddings"],
        "rope_parameters": _rope(body),
    }


def _shared_json(config: Eagle3Config | DFlashConfig) -> dict[str, Any]:
    names = (
        "hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim "
        "rms_norm_eps vocab_size max_position_embeddings draft_vocab_size"
    )
    shared = {name: getattr(config, name) for name in names.split()}
    fixed = {
        "attention_bias": False,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    return shared | _rope_json(config.rope_parameters) | fixed


def eagle3_config(body: dict[str, Any], target_layers: int) -> Eagle3Config:
    """Reads an EAGLE-3 `config.json`.

    Args:
        body: Its contents.
        target_layers: Layers of the target, for configs that leave the default taps unsaid.

    Raises:
        KeyError: A key is missing.
    """
    shared = _shared_config(body)
    taps = body.get("draftgym", {}).get("tap_layers") or eagle3.default_taps(target_layers)
    return Eagle3Config(
        **shared,
        target_hidden_size=body.get("target_hidden_size") or shared["hidden_size"],
        draft_vocab_size=body.get("draft_vocab_size") or shared["vocab_size"],
        tap_layers=tuple(taps),
    )


def eagle3_json(config: Eagle3Config) -> dict[str, Any]:
    """Writes an EAGLE-3 `config.json`."""
    # The tap layers' published key means different things to different loaders, so native
    # checkpoints leave it out and rely on the default taps.
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "norm_before_residual": False,
        **_shared_json(config),
    }


def dflash_config(body: dict[str, Any], ids: Tensor | None) -> DFlashConfig:
    """Reads a DFlash `config.json`.

    Args:
        body: Its contents.
        ids: Target ids of the draft vocabulary, or None for the whole vocabulary.

    Raises:
        KeyError: A key is missing.
    """
    shared = _shared_config(body)
    block = body.get("dflash_config", {})
    covered = shared["vocab_size"] if ids is None else len(ids)
    return DFlashConfig(
        **shared,
        num_hidden_layers=body["num_hidden_layers"],
        draft_vocab_size=covered,
        tap_layers=tuple(block["target_layer_ids"]),
        block_size=block.get("block_size") or body["block_size"],
        mask_token_id=block["mask_token_id"],
    )


def dflash_json(config: DFlashConfig) -> dict[str, Any]:
    """Writes a DFlash `config.json`."""
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "num_hidden_layers": config.num_hidden_layers,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "block_size": config.block_size,
        "dflash_config": {
            "mask_token_id": config.mask_token_id,
            "target_layer_ids": list(config.tap_layers),
        },
        **_shared_json(config),
    }
