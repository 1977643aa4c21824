"""The keys that all formats share: those of a Llama-like decoder in transformers' words."""

from __future__ import annotations

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
    "hidden_act": ("silu", None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1.0, None),
    "num_experts": (0, None),
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
    """Rotary settings, from the new key or the two old ones."""
    new = body.get("rope_parameters")
    scaling = dict(new or body.get("rope_scaling") or {})
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    if scaling.get("rope_type", "default") not in ROPE_TYPES:
        raise refuse("rope_type", scaling["rope_type"], f"supported: {', '.join(ROPE_TYPES)}")
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise refuse("partial_rotary_factor", scaling["partial_rotary_factor"])
    if not new:
        scaling.pop("rope_theta", None)
    return {"rope_theta": body.get("rope_theta", 10000.0)} | scaling


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
    return fields | {"rms_norm_eps": body.get("rms_norm_eps", 1e-6), "rope_parameters": rope(body)}


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
