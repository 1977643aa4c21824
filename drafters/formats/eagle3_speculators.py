"""EAGLE-3 as speculators writes it (`Eagle3Speculator`), which vLLM serves."""

from __future__ import annotations

from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.eagle3.network import Eagle3Config
from draftgym.drafters.formats.contents import Contents
from draftgym.drafters.formats.decoder_keys import layer_ids, layer_ids_from_hidden_states
from draftgym.drafters.formats.eagle3_native import LAYER_IDS, default_or_refuse, read_eagle3
from draftgym.drafters.formats.speculators import SpeculatorsFormat


class SpeculatorsEagle3(SpeculatorsFormat):
    """Format B of the field."""

    kind = "eagle3"

    def read(self, body: dict[str, Any], target_layers: int | None) -> Eagle3Config:
        """Reads the nested config; layer ids are indices into `hidden_states`."""
        if body.get("norm_before_residual") is None:
            raise DraftgymError(
                "norm_before_residual is not said, and loaders disagree on its default",
                "write it into config.json as the head was trained (speculators' trainer: true; "
                "converted from SafeAILab or SpecForge: false)",
            )
        if body.get(LAYER_IDS) is None:
            taps = default_or_refuse(target_layers)
        else:
            taps = layer_ids_from_hidden_states(layer_ids(body, LAYER_IDS), LAYER_IDS)
        return read_eagle3(
            self.layer(body),
            body,
            norm_before_residual=bool(body["norm_before_residual"]),
            norm_output=bool(body.get("norm_output")),
            tap_layers=taps,
        )

    def write(self, contents: Contents) -> dict[str, Any]:
        """Writes every flag, since loaders differ in what they take for granted."""
        config = contents.config
        assert isinstance(config, Eagle3Config)
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

    def inner(self, name: str) -> str:
        """`layers.0.` is our `midlayer.`."""
        return (
            "midlayer." + name.removeprefix("layers.0.") if name.startswith("layers.0.") else name
        )

    def outer(self, name: str) -> str:
        """Our `midlayer.` is `layers.0.`."""
        return (
            "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name
        )
