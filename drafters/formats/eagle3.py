"""EAGLE-3 as SafeAILab, SpecForge and SGLang write it (flat), and as speculators and vLLM do.

The first published heads call themselves `LlamaForCausalLM`; a draft vocabulary tells them from a
language model. The published key of the tap layers means different things to different loaders, and
so do some flags: what is not certain is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.eagle3.network import Eagle3Config, default_taps
from draftgym.drafters.formats.contents import CheckpointFormat, Contents, own_key
from draftgym.drafters.formats.decoder_keys import (
    flag,
    known_layers,
    layer_ids,
    layer_ids_from_hidden_states,
    read_decoder,
    refuse,
    size,
    unsaid,
    write_decoder,
)
from draftgym.drafters.formats.others import first_architecture
from draftgym.drafters.formats.speculators import SpeculatorsFormat

ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
MOST_QUERIES = 1024
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


class NativeEagle3(CheckpointFormat):
    """`midlayer.*` and a flat config; wiring flags also stand under `eagle_config`."""

    name = "eagle3"
    kind = "eagle3"

    def recognises(self, body: dict[str, Any], names: Collection[str] = ()) -> bool:
        """By architecture; the first published heads by a draft vocabulary, or by `midlayer`."""
        named = first_architecture(body)
        head = "draft_vocab_size" in body or any("midlayer." in name for name in names)
        return named in ARCHITECTURES or (named == "LlamaForCausalLM" and head)

    def inner(self, name: str) -> str:
        """Our name of a stored tensor; vLLM's own name of the layer means the same."""
        name = super().inner(name)
        vllm = "layers.0."
        return f"midlayer.{name.removeprefix(vllm)}" if name.startswith(vllm) else name

    def read(self, body: dict[str, Any], target_layers: int | None) -> Eagle3Config:
        """See `CheckpointFormat.read`."""
        nested = body.get("eagle_config")
        nested = nested if isinstance(nested, dict) else {}
        body = body | {key: value for key, value in nested.items() if value is not None}
        return _read(
            body,
            body,
            norm_before_residual=flag(body, "norm_before_residual"),
            norm_output=_norm_output(body),
            tap_layers=_taps(body, target_layers),
            image_queries=_image_queries(body),
        )

    def write(self, contents: Contents) -> dict[str, Any]:
        """Leaves out the tap layers, whose key is ambiguous: loaders take the default taps."""
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


class SpeculatorsEagle3(SpeculatorsFormat):
    """`Eagle3Speculator`: a nested config, layer ids as indices into `hidden_states`."""

    kind = "eagle3"
    prefixes = ("layers.0.", "midlayer.")

    def read(self, body: dict[str, Any], target_layers: int | None) -> Eagle3Config:
        """See `CheckpointFormat.read`."""
        if body.get("norm_before_residual") is None:
            raise DraftgymError(
                "norm_before_residual is not said, and loaders disagree on its default",
                "write it into config.json as the head was trained (speculators' trainer: true; "
                "converted from SafeAILab or SpecForge: false)",
            )
        if unsaid(body, LAYER_IDS):
            taps = default_taps(known_layers(target_layers))
        else:
            taps = layer_ids_from_hidden_states(layer_ids(body, LAYER_IDS), LAYER_IDS)
        return _read(
            self.layer(body),
            body,
            norm_before_residual=flag(body, "norm_before_residual"),
            norm_output=flag(body, "norm_output"),
            tap_layers=taps,
        )

    def write(self, contents: Contents) -> dict[str, Any]:
        """Writes every flag, since loaders differ in what they take for granted."""
        config = contents.config
        assert isinstance(config, Eagle3Config)
        if config.image_queries is not None:
            raise refuse("image_queries", config.image_queries, "keep the eagle3 format")
        flags = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
        width = config.target_hidden_size
        return {
            "architectures": ["Eagle3Speculator"],
            **self.frame(contents, {"model_type": "llama", "num_hidden_layers": 1}, tokens=3),
            **{flag: getattr(config, flag) for flag in flags},
            "embed_requires_grad": False,
            "target_hidden_size": None if width == config.hidden_size else width,
            LAYER_IDS: [index + 1 for index in config.tap_layers],
        }


def _read(layer: dict[str, Any], top: dict[str, Any], **wiring: Any) -> Eagle3Config:
    """The config of a head from its layer's keys, its own keys, and wiring already decided."""
    layers = layer.get("num_hidden_layers", 1)
    if layers != 1:
        raise refuse(
            "num_hidden_layers",
            layers,
            "use a one-layer EAGLE-3 head; where this one has one layer, and only its config "
            "tells the target's number, write 1 into config.json",
        )
    shared = read_decoder(layer)
    before, each = flag(top, "norm_before_fc"), flag(top, "fc_norm")
    if before and each:
        both = "norm_before_fc and fc_norm"
        raise refuse(both, True, "set the one that the head was trained with")
    return Eagle3Config(
        **shared,
        target_hidden_size=size(top, "target_hidden_size", shared["hidden_size"]),
        draft_vocab_size=size(top, "draft_vocab_size", shared["vocab_size"]),
        norm_before_fc=before,
        fc_norm=each,
        **wiring,
    )


def _taps(body: dict[str, Any], target_layers: int | None) -> tuple[int, ...]:
    """0-based output ids; the published key is used only where its convention is certain."""
    ours = own_key(body)
    if "tap_layers" in ours:
        return layer_ids(ours, "tap_layers")
    if unsaid(body, LAYER_IDS):
        return default_taps(known_layers(target_layers))
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


def _image_queries(body: dict[str, Any]) -> int | None:
    """How many queries compress an image; only our own heads have any."""
    ours = own_key(body)
    if "image_queries" not in ours:
        return None
    count = ours["image_queries"]
    if type(count) is not int or not 0 <= count <= MOST_QUERIES:
        raise refuse("image_queries", count, f"write a number from 0 to {MOST_QUERIES}")
    return count


def _norm_output(body: dict[str, Any]) -> bool:
    """Whether the normed output is fed back; the published key has two meanings."""
    ours = own_key(body)
    if "norm_output" in ours or body.get("norm_output") is None:
        return flag(ours, "norm_output")
    raise DraftgymError(
        f"norm_output is {body['norm_output']!r}: SpecForge means the norm before lm_head by it, "
        "vLLM and SGLang mean that the normed output is fed back (EAGLE-3.1)",
        'say in config.json whether it is fed back: "draftgym": {"norm_output": true} or false',
    )
