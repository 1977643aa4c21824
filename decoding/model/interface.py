"""What decoding asks of a target: one pass over the new rows of several sequences.

Sessions, drafters and training know targets by this alone. Two kinds keep it: the compact decoder
(`draftgym.decoding.model.compact`), our own pass over the weights of the architectures that it
knows, and the generic one (`draftgym.decoding.model.generic`), which drives transformers' model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

ModelInputs = Mapping[str, Tensor]
"""What a multimodal model reads beside token ids, by the names of its `forward`: pixels, sizes."""


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder, and what else beside its weights decides what it computes.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key/value heads.
        head_dim: Size of a head.
        vocab: Rows of the language-model head.
        eps: Epsilon of the norms.
        activation: Of its MLPs' gates, by its name in configurations.
        embedding_scale: What embeddings are multiplied with.
        residual_scale: What attention and MLP are multiplied with before they join the stream.
        attention_scale: Of attention's scores; None for 1 / sqrt(head_dim).
        attention_cap: Scores of attention are pressed between -cap and cap; None leaves them.
        logit_scale: What logits are multiplied with.
        logit_cap: Logits are pressed between -cap and cap; None leaves them.
        experts_per_token: Experts that a token goes through, in layers that have some.
        shares_sum_to_one: Whether the shares of a token's experts are scaled to a sum of 1.
        ropes: Which of its rotary tables each layer uses (`NO_ROPE`: none); empty for the first.
        windows: How many positions each layer sees back, the row's own included; 0 or empty for
            all. Fingerprints leave them out: they change nothing until a text is longer.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    activation: str = "silu"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_scale: float = 1.0
    logit_cap: float | None = None
    experts_per_token: int = 0
    shares_sum_to_one: bool = False
    ropes: tuple[int, ...] = ()
    windows: tuple[int, ...] = field(default=(), metadata={"in_fingerprint": False})


NO_ROPE = -1
"""In `DecoderShape.ropes`: a layer without rotary embedding."""


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
        room: Where the taps of many rows may be written, `[n, taps, d]`, instead of new memory.
    """

    cache: Any
    tokens: Tensor
    positions: Tensor | None = None
    visible: Tensor | None = None
    logits_from: int = 0
    inputs: ModelInputs | None = None
    room: Tensor | None = None


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

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Float32 logits of final hidden states, as `PassOutput` has both.

        This is more than a product with `head` where the model scales or caps its logits. Gradients
        reach `hidden`.

        Args:
            hidden: `[..., d]`.
            rows: Tokens whose logits are wanted `[m]`; None for all.

        Returns:
            `[..., m]`.
        """

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
