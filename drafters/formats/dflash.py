"""DFlash as z-lab writes it (`dflash_config`, no tables of its own), and as speculators does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.dflash.network import DFlashConfig, default_taps
from draftgym.drafters.formats.contents import CheckpointFormat, Contents, Origin
from draftgym.drafters.formats.decoder_keys import (
    check_harmless,
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
from draftgym.drafters.modules import EMBEDDING, HEAD

ARCHITECTURES = ("DFlashDraftModel",)
LAYER_IDS = "aux_hidden_state_layer_ids"

HARMLESS: dict[str, tuple[Any, ...]] = {
    "causal": (False, None),
    "is_causal": (False, None),
    "sample_from_anchor": (False, None),
    "shift_label": (False, None),
    "projector_type": ("dflash", None),
}
"""Keys of DFlash's relatives that change what a block means, with the values that do not."""


class NativeDFlash(CheckpointFormat):
    """A flat config; what is DFlash's own stands under `dflash_config`, or beside it."""

    name = "dflash"
    kind = "dflash"
    forbids = (EMBEDDING, HEAD)

    def recognises(self, body: dict[str, Any], names: Collection[str] = ()) -> bool:
        """By architecture."""
        return first_architecture(body) in ARCHITECTURES

    def read(self, body: dict[str, Any], target_layers: int | None) -> DFlashConfig:
        """See `CheckpointFormat.read`; layer ids are 0-based outputs, as ours."""
        nested = body.get("dflash_config")
        body = body | (nested if isinstance(nested, dict) else {})
        if unsaid(body, "target_layer_ids"):
            return _read(body, body, _default_or_refuse(body, target_layers))
        return _read(body, body, layer_ids(body, "target_layer_ids"))

    def write(self, contents: Contents) -> dict[str, Any]:
        """See `CheckpointFormat.write`."""
        config, layers = contents.config, contents.origin.layers
        assert isinstance(config, DFlashConfig)
        reduced = config.draft_vocab_size < config.vocab_size
        return {
            "architectures": list(ARCHITECTURES),
            "model_type": "qwen3",
            "block_size": config.block_size,
            "dflash_config": {
                "mask_token_id": config.mask_token_id,
                "target_layer_ids": list(config.tap_layers),
            },
            **_stack(config),
            **write_decoder(contents),
            **({"draft_vocab_size": config.draft_vocab_size} if reduced else {}),
            **({"num_target_layers": layers} if layers is not None else {}),
            "dtype": contents.dtype,
            "torch_dtype": contents.dtype,
        }

    def origin(self, body: dict[str, Any]) -> Origin:
        """Its own config tells how many layers the target has."""
        said = super().origin(body)
        return replace(said, layers=said.layers or body.get("num_target_layers"))


class SpeculatorsDFlash(SpeculatorsFormat):
    """`DFlashSpeculator`: a nested config, layer ids as indices into `hidden_states`."""

    kind = "dflash"
    demands: tuple[str, ...] = (EMBEDDING, HEAD)

    def read(self, body: dict[str, Any], target_layers: int | None) -> DFlashConfig:
        """See `CheckpointFormat.read`."""
        if unsaid(body, LAYER_IDS):
            taps = _default_or_refuse(self.layer(body), target_layers)
        else:
            taps = layer_ids_from_hidden_states(layer_ids(body, LAYER_IDS), LAYER_IDS)
        return _read(self.layer(body), body, taps)

    def write(self, contents: Contents) -> dict[str, Any]:
        """See `CheckpointFormat.write`; an index into `hidden_states` is z-lab's id + 1."""
        config = contents.config
        assert isinstance(config, DFlashConfig)
        layer = {"model_type": "qwen3"} | _stack(config)
        return {
            "architectures": ["DFlashSpeculator"],
            **self.frame(contents, layer, tokens=config.block_size - 1),
            "block_size": config.block_size,
            "mask_token_id": config.mask_token_id,
            "target_hidden_size": None,
            "sliding_window_non_causal": False,
            "sample_from_anchor": False,
            LAYER_IDS: [index + 1 for index in config.tap_layers],
        }


def _default_or_refuse(layer: dict[str, Any], target_layers: int | None) -> tuple[int, ...]:
    """The published taps: as many as there are draft layers."""
    return default_taps(known_layers(target_layers), size(layer, "num_hidden_layers"))


def _read(layer: dict[str, Any], top: dict[str, Any], tap_layers: tuple[int, ...]) -> DFlashConfig:
    """The config of a drafter from its layers' keys and its own."""
    for body in (layer, top):
        check_harmless(body, HARMLESS)
    shared = read_decoder(layer)
    given = {key: value for key, value in top.items() if value is not None}
    mask, width = given.get("mask_token_id"), given.get("target_hidden_size", shared["hidden_size"])
    if type(mask) is not int:
        raise DraftgymError(
            f"mask_token_id is {mask!r}, not a token id",
            "write the id of the mask token that it was trained with into config.json",
        )
    if width != shared["hidden_size"]:
        raise refuse("target_hidden_size", width, "use a drafter as wide as its target")
    if size(given, "block_size") < 2:
        raise refuse("block_size", given["block_size"], "a block has an anchor and a mask at least")
    return DFlashConfig(
        **shared,
        num_hidden_layers=size(layer, "num_hidden_layers"),
        draft_vocab_size=size(given, "draft_vocab_size", shared["vocab_size"]),
        tap_layers=tap_layers,
        block_size=given["block_size"],
        mask_token_id=mask,
    )


def _stack(config: DFlashConfig) -> dict[str, Any]:
    """The keys of its stack of layers, all of them without a window."""
    return {
        "num_hidden_layers": config.num_hidden_layers,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "max_window_layers": config.num_hidden_layers,
        "sliding_window": None,
        "use_sliding_window": False,
    }
