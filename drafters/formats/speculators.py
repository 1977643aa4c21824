"""What both speculators formats share: the layer in a dictionary of its own, and the verifier."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.drafters.formats.contents import (
    CARRIED,
    CheckpointFormat,
    Contents,
    Origin,
    own_key,
)
from draftgym.drafters.formats.decoder_keys import write_decoder
from draftgym.drafters.modules import EMBEDDING

LAYER = "transformer_layer_config"
MODEL_TYPE = "speculators_model_type"
LAYOUT_VERSION = "0.3.0"  # of speculators, whose layout of keys this is


class SpeculatorsFormat(CheckpointFormat):
    """A config with `speculators_model_type`."""

    name = "speculators"
    demands: tuple[str, ...] = (EMBEDDING,)

    def recognises(self, body: dict[str, Any], names: Collection[str] = ()) -> bool:
        """By `speculators_model_type`."""
        return bool(body.get(MODEL_TYPE) == self.kind)

    def layer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The decoder layer's keys."""
        found = body[LAYER]
        if not isinstance(found, dict):
            raise DraftgymError(f"{LAYER} is {found!r}", "copy the config.json again")
        return found

    def carried(self, body: dict[str, Any]) -> dict[str, Any]:
        """Harmless keys, which stand in the layer's dictionary."""
        layer = self.layer(body)
        return {key: layer[key] for key in CARRIED if key in layer}

    def origin(self, body: dict[str, Any]) -> Origin:
        """Ours where we wrote it, the verifier otherwise."""
        if own_key(body):
            return super().origin(body)
        config = body.get("speculators_config")
        verifier = config.get("verifier") if isinstance(config, dict) else None
        verifier = verifier if isinstance(verifier, dict) else {}
        architectures = verifier.get("architectures") or [None]
        return Origin(name=verifier.get("name_or_path"), architecture=architectures[0])

    def frame(self, contents: Contents, layer: dict[str, Any], tokens: int) -> dict[str, Any]:
        """The keys that both kinds have.

        Args:
            contents: What is written.
            layer: Keys of the layer that only this kind has.
            tokens: Tokens to propose a round, a default for those who serve it.
        """
        config, origin = contents.config, contents.origin
        proposal = {
            "proposal_type": "greedy",
            "speculative_tokens": tokens,
            "verifier_accept_k": 1,
            "accept_tolerance": 0.0,
        }
        return {
            MODEL_TYPE: self.kind,
            "speculators_version": LAYOUT_VERSION,
            LAYER: layer | write_decoder(contents),
            "draft_vocab_size": config.draft_vocab_size,
            "speculators_config": {
                "algorithm": self.kind,
                "default_proposal_method": "greedy",
                "proposal_methods": [proposal],
                "verifier": {
                    "name_or_path": origin.name,
                    "architectures": [origin.architecture] if origin.architecture else [],
                },
            },
            "torch_dtype": contents.dtype,
        }
