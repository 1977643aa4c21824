"""EAGLE-3 as SafeAILab, SpecForge and SGLang write it: `midlayer.*`, flat config.

The first published heads call themselves `LlamaForCausalLM`; a draft vocabulary tells them from a
language model.
"""

from __future__ import annotations

from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.eagle3.network import Eagle3Config, default_taps
from draftgym.drafters.formats.contents import CheckpointFormat, Contents, own_key
from draftgym.drafters.formats.decoder_keys import (
    layer_ids,
    read_decoder,
    refuse,
    size,
    write_decoder,
)

ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


class NativeEagle3(CheckpointFormat):
    """Format A of the field."""

    name = "eagle3"
    kind = "eagle3"

    def recognises(self, body: dict[str, Any]) -> bool:
        """By architecture, or by a draft vocabulary on a one-layer Llama."""
        named = (body.get("architectures") or [None])[0]
        first = named == "LlamaForCausalLM" and "draft_vocab_size" in body
        return named in ARCHITECTURES or (first and body.get("num_hidden_layers") == 1)

    def read(self, body: dict[str, Any], target_layers: int | None) -> Eagle3Config:
        """Reads a flat config; wiring flags also stand under `eagle_config`."""
        body = body | {k: v for k, v in _nested(body).items() if v is not None}
        return read_eagle3(
            body,
            body,
            norm_before_residual=bool(body.get("norm_before_residual", False)),
            norm_output=_norm_output(body),
            tap_layers=_taps(body, target_layers),
        )

    def write(self, contents: Contents) -> dict[str, Any]:
        """Writes a flat config, without the tap layers.

        Their published key means different things to different loaders, so native checkpoints
        leave it out and rely on the default taps.
        """
        config = contents.config
        assert isinstance(config, Eagle3Config)
        flags = ("norm_before_fc", "fc_norm", "norm_output")
        width = config.target_hidden_size
        return {
            "architectures": [ARCHITECTURES[0]],
            "model_type": "llama",
            "num_hidden_layers": 1,
            **write_decoder(contents),
            "draft_vocab_size": config.draft_vocab_size,
            "torch_dtype": contents.dtype,
            "norm_before_residual": config.norm_before_residual,
            **{flag: True for flag in flags if getattr(config, flag)},
            **({"target_hidden_size": width} if width != config.hidden_size else {}),
        }


def read_eagle3(layer: dict[str, Any], top: dict[str, Any], **wiring: Any) -> Eagle3Config:
    """The config of a head from its layer's keys, its own keys, and wiring already decided."""
    if layer.get("num_hidden_layers", 1) != 1:
        raise refuse(
            "num_hidden_layers", layer["num_hidden_layers"], "use a one-layer EAGLE-3 head"
        )
    if "sliding_attention" in (layer.get("layer_types") or ()):
        raise refuse("layer_types", layer["layer_types"])
    shared = read_decoder(layer)
    given = {key: value for key, value in top.items() if value is not None}
    before, each = bool(given.get("norm_before_fc")), bool(given.get("fc_norm"))
    if before and each:
        raise refuse(
            "norm_before_fc and fc_norm", True, "set the one that the head was trained with"
        )
    return Eagle3Config(
        **shared,
        target_hidden_size=size(
            {"target_hidden_size": shared["hidden_size"]} | given, "target_hidden_size"
        ),
        draft_vocab_size=size(
            {"draft_vocab_size": shared["vocab_size"]} | given, "draft_vocab_size"
        ),
        norm_before_fc=before,
        fc_norm=each,
        **wiring,
    )


def default_or_refuse(target_layers: int | None) -> tuple[int, ...]:
    """The published taps of a target with so many layers."""
    if target_layers is None:
        raise DraftgymError(
            "the config leaves the tap layers to the target's default, and the target is unknown",
            "name it with --target",
        )
    return default_taps(target_layers)


def _nested(body: dict[str, Any]) -> dict[str, Any]:
    nested = body.get("eagle_config")
    return nested if isinstance(nested, dict) else {}


def _taps(body: dict[str, Any], target_layers: int | None) -> tuple[int, ...]:
    """0-based output ids; the published key is used only where its convention is certain."""
    ours = own_key(body)
    if "tap_layers" in ours:
        return layer_ids(ours, "tap_layers")
    if body.get(LAYER_IDS) is None:
        return default_or_refuse(target_layers)
    ids = layer_ids(body, LAYER_IDS)
    outputs_plus_one = tuple(index - 1 for index in ids)
    if target_layers is not None and outputs_plus_one == default_taps(target_layers):
        return outputs_plus_one  # indices into hidden_states, as vLLM and speculators count
    if ids[0] == 1:
        return ids  # outputs of 0-based layers, as SpecForge counts; SGLang tells them like this
    raise DraftgymError(
        f"{LAYER_IDS} {list(ids)} may count layer outputs from 0 (SpecForge) or hidden states "
        "(vLLM), one layer apart",
        'say which in config.json, as outputs from 0: "draftgym": {"tap_layers": [...]}',
    )


def _norm_output(body: dict[str, Any]) -> bool:
    """Whether the normed output is fed back; the published key has two meanings."""
    ours = own_key(body)
    if "norm_output" in ours or body.get("norm_output") is None:
        return bool(ours.get("norm_output", False))
    raise DraftgymError(
        f"norm_output is {body['norm_output']!r}: SpecForge means the norm before lm_head by it, "
        "vLLM and SGLang mean that the normed output is fed back (EAGLE-3.1)",
        'say in config.json whether it is fed back: "draftgym": {"norm_output": true} or false',
    )
