"""How a target computes, to the bit: workers do as the one that planned found best.

Where nobody says, probes decide the numbers, whether weights are packed and whether passes are
compiled. They are of time, and may come out otherwise on the next machine, or in the next minute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.precision import settle_packing
from draftgym.decoding.model.target import Target

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Passes:
    """How.

    Attributes:
        dtype: The numbers.
        packed: Whether weights are packed.
        backend: Whose pass.
    """

    dtype: str
    packed: bool
    backend: Backend

    @classmethod
    def of(cls, target: Target) -> Passes:
        """Those of a loaded target."""
        backend: Backend = "transformers"
        if isinstance(target.decoder, Decoder):
            backend = "openvino" if target.precision.compiles else "compact"
        return cls(target.precision.dtype, target.precision.packed, backend)

    def settled(self, settings: Settings) -> Settings:
        """Settings with a `dtype` and a `backend`, to load a target by in this process."""
        settle_packing(self.packed)
        return replace(settings, dtype=self.dtype, backend=self.backend)  # type: ignore[type-var]
