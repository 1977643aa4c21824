"""The keys that all formats share: those of a Llama-like decoder in transformers' words."""

from __future__ import annotations

import math
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.formats.contents import Contents

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

HARMLESS: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "qkv_bias": (False, None),
    "hidden_act": ("silu", "swish", None),
    "hidden_activation": ("silu", "swish", None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1.0, None),
    "rope_interleave": (False, None),
    "use_qk_norm": (False, None),
    "layernorm_type": ("rmsnorm", None),
    "rms_norm_add_unit_offset": (False, None),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "embedding_multiplier": (1.0, None),
    "residual_multiplier": (1.0, None),
    "logits_scaling": (1.0, None),
    "scale_emb": (1.0, None),
    "scale_depth": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "no_rope_layers": ([], None),
    "attention_sinks": (False, None),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
    "n_routed_experts": (0, None),
}
"""Keys that change the network, with the values that leave it as we build it."""


def refuse(key: str, value: Any, remedy: str = "") -> DraftgymError:
    """The error for a key whose value we cannot honour."""
    return DraftgymError(
        f"{key} is {value!r}, which draftgym does not support",
        remedy or f"use a drafter that was trained without {key}",
    )


def check_harmless(body: dict[str, Any], harmless: dict[str, tuple[Any, ...]]) -> None:
    """Raises `DraftgymError` for a key that has another value than the harmless ones."""
    for key, values in harmless.items():
        if key in body and body[key] not in values:
            raise refuse(key, body[key])


def size(body: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer.

    Raises:
        DraftgymError: It is something else.
        KeyError: It is missing, and there is no default.
    """
    value = body[key] if default is None or body.get(key) is not None else default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DraftgymError(
            f"{key} is {value!r}, not a positive number", "copy the config.json again"
        )
    return value


def flag(body: dict[str, Any], key: str) -> bool:
    """A switch, off where it is not said.

    Raises:
        DraftgymError: It is neither true nor false.
    """
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise DraftgymError(f"{key} is {value!r}", "write true or false into config.json")
    return bool(value)


def number(body: dict[str, Any], key: str, default: float) -> float:
    """A positive finite number.

    Raises:
        DraftgymError: It is something else.
    """
    value = default if body.get(key) is None else body[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DraftgymError(
            f"{key} is {value!r}, not a positive number", "copy the config.json again"
        )
    return float(value)


def unsaid(body: dict[str, Any], key: str) -> bool:
    """Whether a list of layers is left to its default: missing, null or empty."""
    return body.get(key) is None or body[key] == []


def known_layers(target_layers: int | None) -> int:
    """How many layers the target has, for defaults that depend on it.

    Raises:
        DraftgymError: It is not known.
    """
    if target_layers is None:
        raise DraftgymError(
            "the config leaves the tap layers to the target's default, and the target is unknown",
            "name it with --target",
        )
    return target_layers


def layer_ids(body: dict[str, Any], key: str) -> tuple[int, ...]:
    """A list of layer ids, of any convention."""
    value = body[key]
    if not isinstance(value, list) or not value or not all(type(item) is int for item in value):
        raise DraftgymError(
            f"{key} is {value!r}, not a list of layers", "copy the config.json again"
        )
    return tuple(value)


def layer_ids_from_hidden_states(ids: tuple[int, ...], key: str) -> tuple[int, ...]:
    """0-based output ids from indices into `hidden_states`, where 0 is the embedding."""
    if min(ids) < 1:
        raise refuse(key, list(ids), f"{key} counts from 1: its id k is the output of layer k - 1")
    return tuple(index - 1 for index in ids)


def rope(body: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, from the new key or the two old ones.

    Raises:
        DraftgymError: A kind that we do not build, or angles that make no sense.
    """
    new = body.get("rope_parameters")
    scaling = dict(new or body.get("rope_scaling") or {})
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    kind = scaling.setdefault("rope_type", "default")
    if kind == "mrope" or any("mrope" in key for key in scaling):
        raise refuse(
            "rope_scaling",
            "mrope",
            "mrope counts places in images, which no target here has; use a head for texts",
        )
    if kind not in ROPE_TYPES:
        raise refuse("rope_type", kind, f"supported: {', '.join(ROPE_TYPES)}")
    by_layer = next((key for key, value in scaling.items() if isinstance(value, dict)), None)
    if by_layer is not None:
        raise refuse("rope_parameters", f"one per kind of layer ({by_layer})")
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise refuse("partial_rotary_factor", scaling["partial_rotary_factor"])
    if not new:
        scaling.pop("rope_theta", None)
    if kind in ("llama3", "yarn"):  # else transformers takes the length that we rotate to
        limit = body["max_position_embeddings"]
        scaling.setdefault("original_max_position_embeddings", limit)
    settings = {"rope_theta": body.get("rope_theta")} | scaling
    return settings | {"rope_theta": number(settings, "rope_theta", 10000.0)}


def _check_windows(body: dict[str, Any]) -> None:
    """Raises `DraftgymError` for a config whose attention ends at a sliding window."""
    kinds = body.get("layer_types") or ()
    if any(kind != "full_attention" for kind in kinds):
        remedy = "a layer with a sliding window is not built; use one of full_attention alone"
        raise refuse("layer_types", kinds, remedy)
    window, longest = body.get("sliding_window"), body.get("max_position_embeddings")
    if window is None or body.get("use_sliding_window") is False or kinds:
        return
    if not isinstance(window, int) or not isinstance(longest, int) or window < longest:
        raise refuse(
            "sliding_window",
            window,
            'use a drafter without one; if it was trained without, write "use_sliding_window": '
            "false into config.json",
        )


def rope_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Both spellings: older serving stacks read only `rope_theta` and `rope_scaling`."""
    scaling = {key: value for key, value in settings.items() if key != "rope_theta"}
    plain = scaling.get("rope_type", "default") == "default"
    return {
        "rope_theta": settings["rope_theta"],
        "rope_scaling": None if plain else scaling,
        "rope_parameters": {"rope_type": "default"} | settings,
    }


def read_decoder(body: dict[str, Any]) -> dict[str, Any]:
    """The fields that both networks' configs share.

    Raises:
        DraftgymError: A value is no size, or changes the network in a way that we do not build.
        KeyError: A key is missing.
    """
    check_harmless(body, HARMLESS)
    _check_windows(body)
    heads = size(body, "num_attention_heads")
    body = {"num_key_value_heads": heads} | {k: v for k, v in body.items() if v is not None}
    body.setdefault("head_dim", size(body, "hidden_size") // heads)
    fields: dict[str, Any] = {key: size(body, key) for key in SIZES}
    if heads % fields["num_key_value_heads"]:
        raise DraftgymError(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{fields['num_key_value_heads']}",
            "copy the config.json again",
        )
    if fields["head_dim"] % 2:
        raise DraftgymError(
            f"head_dim is {fields['head_dim']}, and halves of a head are rotated",
            "copy the config.json again",
        )
    return fields | {
        "rms_norm_eps": number(body, "rms_norm_eps", 1e-6),
        "rope_parameters": rope(body),
    }


def write_decoder(contents: Contents) -> dict[str, Any]:
    """The same keys, to write."""
    config = contents.config
    fixed = {
        "rms_norm_eps": config.rms_norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    sizes = {key: getattr(config, key) for key in SIZES}
    return sizes | rope_json(config.rope_parameters) | fixed | contents.carried
