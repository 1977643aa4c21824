"""What a checkpoint says, whatever its format: a network's config, its tensors, its origin.

Formats translate between their own words and these. Tensors carry the names of our networks (the
native ones) and keep the dtype they are stored in, so that translating changes no bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from draftgym.decoding.model.target import Target
from draftgym.drafters.modules import DraftConfig


@dataclass(frozen=True)
class Origin:
    """The target that a drafter was trained for, as far as its checkpoint tells.

    Attributes:
        name: What it was called (a Hub id, a folder, an embedded target).
        fingerprint: Hash of its weights.
        layers: How many it has.
        architecture: Its transformers class.
        copied: Tensors of this checkpoint that are copies of the target's.
    """

    name: str | None = None
    fingerprint: str | None = None
    layers: int | None = None
    architecture: str | None = None
    copied: tuple[str, ...] = ()

    @classmethod
    def of(cls, target: Target) -> Origin:
        """The origin of a drafter that is trained for `target`."""
        return cls(
            target.name, target.fingerprint, target.decoder.shape.layers, target.architecture
        )


@dataclass(frozen=True)
class Contents:
    """A checkpoint in our terms.

    Attributes:
        config: Sizes and wiring.
        tensors: Stored weights by network name. `d2t` and `t2d` are there exactly when the drafter
            proposes less than the whole vocabulary.
        origin: Its target.
        carried: Harmless config keys that are passed on as they are (special token ids and such).
    """

    config: DraftConfig
    tensors: dict[str, Tensor]
    origin: Origin = field(default_factory=Origin)
    carried: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`eagle3` or `dflash`."""
        return self.config.kind

    @property
    def dtype(self) -> str:
        """Name of the dtype of the weights, as configs write it (`bfloat16`)."""
        return str(self.tensors["fc.weight"].dtype).removeprefix("torch.")


class CheckpointFormat(ABC):
    """One way of writing a drafter to a folder.

    Attributes:
        name: What `--format` calls it.
        kind: `eagle3` or `dflash`.
        demands: Tensors of the target that it wants copied.
        forbids: Tensors that it has no place for.
        prefixes: What some stored names begin with, and what ours do instead.
    """

    name: str
    kind: str
    demands: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    prefixes: tuple[str, str] = ("", "")

    @abstractmethod
    def recognises(self, body: dict[str, Any], names: Collection[str] = ()) -> bool:
        """Whether a `config.json`, beside tensors of these names, is of this format."""

    @abstractmethod
    def read(self, body: dict[str, Any], target_layers: int | None) -> DraftConfig:
        """The network's config.

        Args:
            body: The `config.json`.
            target_layers: Layers of the target, for configs that leave the default taps unsaid.

        Raises:
            DraftgymError: It says something that we do not support, or nothing usable.
            KeyError: A key is missing.
        """

    @abstractmethod
    def write(self, contents: Contents) -> dict[str, Any]:
        """The `config.json`, without our own key `draftgym`."""

    def carried(self, body: dict[str, Any]) -> dict[str, Any]:
        """The keys of `Contents.carried`."""
        return {key: body[key] for key in CARRIED if key in body}

    def origin(self, body: dict[str, Any]) -> Origin:
        """The target it was trained for."""
        ours = own_key(body)
        return Origin(
            ours.get("target"),
            ours.get("target_fingerprint"),
            ours.get("target_layers"),
            ours.get("target_architecture"),
            tuple(ours.get("copied_from_target", ())),
        )

    def inner(self, name: str) -> str:
        """Our name of a stored tensor; some loaders put `model.` before all of them."""
        stored, ours = self.prefixes
        name = name.removeprefix("model.")
        return ours + name.removeprefix(stored) if name.startswith(stored) else name

    def outer(self, name: str) -> str:
        """The stored name of one of our tensors."""
        stored, ours = self.prefixes
        return stored + name.removeprefix(ours) if name.startswith(ours) else name


CARRIED = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "attention_dropout",
)


def own_key(body: dict[str, Any]) -> dict[str, Any]:
    """What stands under `draftgym`, which other loaders ignore."""
    ours = body.get("draftgym")
    return ours if isinstance(ours, dict) else {}


def own_json(contents: Contents) -> dict[str, Any]:
    """The key `draftgym`: what a format has no words for, or words that loaders disagree on."""
    config, origin = contents.config, contents.origin
    said: dict[str, Any] = {
        "tap_layers": list(config.tap_layers),
        "target": origin.name,
        "target_fingerprint": origin.fingerprint,
        "target_layers": origin.layers,
        "target_architecture": origin.architecture,
        "copied_from_target": list(origin.copied) or None,
    }
    if getattr(config, "norm_output", False):
        said["norm_output"] = True
    said["image_queries"] = getattr(config, "image_queries", None)
    return {key: value for key, value in said.items() if value is not None}
