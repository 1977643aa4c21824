"""EAGLE-3's network: one decoder layer on the target's fused hidden states."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from draftgym.drafters.eagle3.images import ImageQueries
from draftgym.drafters.modules import DraftConfig, DraftLayer, DraftNetwork


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(DraftConfig):
    """Sizes and wiring of an EAGLE-3 head; its rotary settings must match the target's.

    Attributes:
        target_hidden_size: Width of the target's taps (three, in published heads).
        norm_before_residual: The layer's residual is the normed feature, not the feature itself.
        norm_before_fc: The concatenated taps are normed before they are fused.
        fc_norm: Each tap is normed before they are concatenated and fused.
        norm_output: The next step reads the normed output (EAGLE-3.1), not the output itself.
        image_queries: How many queries compress an image (`draftgym.drafters.eagle3.images`); 0
            hides images, None reads each of their tokens like one of text.
    """

    kind = "eagle3"
    target_hidden_size: int
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    image_queries: int | None = None


def default_taps(target_layers: int) -> tuple[int, ...]:
    """The published choice: outputs of layers 1, n // 2 - 1 and n - 4 (0-based)."""
    low, middle, high = 1, target_layers // 2 - 1, target_layers - 4
    return (low, max(middle, 0), max(high, 0))


class Eagle3Layer(DraftLayer):
    """The one decoder layer; its input is the pair (embedding, feature), twice as wide."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config, inputs=2 * config.hidden_size, has_norms=False)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_before_residual = config.norm_before_residual

    def pair(self, embedding: Tensor, feature: Tensor) -> Tensor:
        """The attention input `[..., 2d]`: normed embedding first, then normed feature."""
        return torch.cat([self.input_layernorm(embedding), self.hidden_norm(feature)], dim=-1)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Residuals and MLP after attention; the residual is the feature, normed or not."""
        if self.norm_before_residual:
            residual = self.hidden_norm(residual)
        return super().finish(residual, attended)


class Eagle3Network(DraftNetwork):
    """The head's weights under their native names (`fc`, `midlayer.*`, `norm`, `lm_head`, maps).

    Args:
        config: Sizes and wiring.
        draft_ids: Target ids of the draft vocabulary, ascending `[Vd]`; None for the first Vd.
        own: Tables that the checkpoint brings instead of the target's (the LM head always is).
    """

    config: Eagle3Config

    def __init__(
        self, config: Eagle3Config, draft_ids: Tensor | None = None, own: Collection[str] = ()
    ) -> None:
        super().__init__(config, draft_ids, own)
        width, eps = config.target_hidden_size, config.rms_norm_eps
        taps = len(config.tap_layers)
        self.fc = nn.Linear(taps * width, config.hidden_size, bias=False)
        if config.norm_before_fc:
            self.input_norm = nn.RMSNorm(taps * width, eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(nn.RMSNorm(width, eps) for _ in range(taps))
        self.midlayer = Eagle3Layer(config)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        count = config.image_queries
        self.images = ImageQueries(config, count) if count else None

    def fuse(self, taps: Tensor) -> Tensor:
        """Features `[..., d]` of concatenated taps `[..., k * d_target]`."""
        config = self.config
        if config.norm_before_fc:
            taps = self.input_norm(taps)
        if config.fc_norm:
            each = taps.chunk(len(config.tap_layers), dim=-1)
            pairs = zip(self.fc_norm, each, strict=True)
            taps = torch.cat([norm(tap) for norm, tap in pairs], dim=-1)
        out: Tensor = self.fc(taps)
        return out

    def carry(self, out: Tensor) -> Tensor:
        """The feature `[..., d]` that the next draft step reads, of a layer output."""
        carried: Tensor = self.norm(out) if self.config.norm_output else out
        return carried

    def logits(self, out: Tensor) -> Tensor:
        """Draft-vocabulary logits `[..., Vd]` of a layer output."""
        result: Tensor = self.lm_head(self.norm(out))
        return result
