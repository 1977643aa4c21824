"""What decoding asks of a target: one pass over the new rows of several sequences.

Sessions, drafters and training know targets by this alone. Two kinds keep it: the compact decoder
(`draftgym.decoding.model.compact`), our own pass over the weights of the architectures that it
knows, and the generic one (`draftgym.decoding.model.generic`), which drives transformers' model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

ModelInputs = Mapping[str, Tensor]
"""What a multimodal model reads beside token ids, by the names of its `forward`: pixels, sizes."""


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder, and the function of its MLPs' gates by its name in configurations."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    activation: str = "silu"


class SequenceCache(Protocol):
    """What a target remembers of one sequence.

    Rows past `length` are scratch: a pass writes the new tokens there, and `keep` decides which
    stay.

    Attributes:
        length: Positions that are kept.
    """

    length: int

    @property
    def capacity(self) -> int:
        """Most positions that fit."""

    def require(self, rows: int) -> None:
        """Raises `DraftgymError` unless `rows` more positions fit."""

    def keep(self, rows: Tensor | int) -> None:
        """Commits scratch rows.

        Args:
            rows: How many leading scratch rows to keep, or which ones (`[m]`, ascending offsets
                behind `length`).
        """

    def roll_back(self, length: int) -> None:
        """Forgets everything from position `length` on."""

    def start_like(self, other: Any, length: int) -> None:
        """Takes over the first `length` positions of another cache of the same target."""


@dataclass(frozen=True)
class NewRows:
    """The new tokens of one sequence in a pass.

    Attributes:
        cache: The sequence's cache; its `length` is where the new rows begin.
        tokens: Token ids `[n]`, on the target's device.
        positions: Absolute positions `[n]`, or None for consecutive ones.
        visible: Who sees whom among the newest keys, bool `[n, m]`, or None for causal new rows.
            The last n of the m keys are the new rows; any before are the newest cached ones (a tree
            that grows by levels). All new rows see every other cached position.
        logits_from: Logits are computed for rows from this one on (prefill needs only the last).
        inputs: What belongs to the images among the tokens. Such rows begin a sequence.
    """

    cache: Any
    tokens: Tensor
    positions: Tensor | None = None
    visible: Tensor | None = None
    logits_from: int = 0
    inputs: ModelInputs | None = None


@dataclass(frozen=True)
class PassOutput:
    """What a pass gives for one sequence.

    Attributes:
        logits: Float32 `[n - logits_from, vocab]`.
        hidden: Final hidden states after the last norm, `[n - logits_from, d]`.
        taps: Residual stream after each tapped layer, `[n, taps, d]`.
    """

    logits: Tensor
    hidden: Tensor
    taps: Tensor


class TargetDecoder(Protocol):
    """A target's weights and its forward pass. Holds no sequence state.

    Attributes:
        shape: Its sizes.
        draws_trees: Whether it verifies branching proposals; others verify chains alone.
    """

    shape: DecoderShape
    draws_trees: bool

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of hidden states and taps."""

    @property
    def device(self) -> torch.device:
        """Where it computes: token ids go there, outputs come from there."""

    @property
    def embedding(self) -> Tensor:
        """Input embedding `[rows, d]`."""

    @property
    def head(self) -> Tensor:
        """Language-model head `[vocab, d]`."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits `[n, vocab]` of final hidden states `[n, d]`, as `PassOutput` has both."""

    def new_cache(self, capacity: int) -> Any:
        """An empty `SequenceCache` for one sequence."""

    def forward(
        self, batch: Sequence[NewRows], tap_layers: Sequence[int] = (), with_logits: bool = True
    ) -> list[PassOutput]:
        """One pass over the new rows of several sequences; see `NewRows`.

        Keys and values are written behind each cache's `length`, which does not move: the caller
        keeps what verification accepts (`SequenceCache.keep`).

        Args:
            batch: One entry per sequence; their row counts may differ.
            tap_layers: 0-based layers whose output is returned, in this order.
            with_logits: False skips the language-model head (`logits` then has no rows).

        Returns:
            One output per sequence.
        """
