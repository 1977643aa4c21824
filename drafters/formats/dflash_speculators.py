"""DFlash as speculators writes it (`DFlashSpeculator`), which vLLM serves."""

from __future__ import annotations

from typing import Any

from draftgym.drafters.dflash.network import DFlashConfig
from draftgym.drafters.formats.contents import EMBEDDING, HEAD, Contents
from draftgym.drafters.formats.decoder_keys import layer_ids, layer_ids_from_hidden_states
from draftgym.drafters.formats.dflash_native import read_dflash, stack_json
from draftgym.drafters.formats.speculators import SpeculatorsFormat

LAYER_IDS = "aux_hidden_state_layer_ids"


class SpeculatorsDFlash(SpeculatorsFormat):
    """Format D of the field."""

    kind = "dflash"
    demands: tuple[str, ...] = (EMBEDDING, HEAD)

    def read(self, body: dict[str, Any], target_layers: int | None) -> DFlashConfig:
        """Reads the nested config; layer ids are indices into `hidden_states`."""
        taps = layer_ids_from_hidden_states(layer_ids(body, LAYER_IDS), LAYER_IDS)
        return read_dflash(self.layer(body), body, taps)

    def write(self, contents: Contents) -> dict[str, Any]:
        """Writes layer ids as indices into `hidden_states`: z-lab's id + 1."""
        config = contents.config
        assert isinstance(config, DFlashConfig)
        layer = {"model_type": "qwen3"} | stack_json(config)
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
