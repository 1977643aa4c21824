"""DFlash's network: a few layers that read the target's fused hidden states as extra keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from draftgym.drafters.modules import (
    HEAD,
    Attend,
    DraftConfig,
    DraftLayer,
    DraftNetwork,
    frozen_rows,
)
from draftgym.drafters.vocabulary import from_d2t


@dataclass(frozen=True, kw_only=True)
class DFlashConfig(DraftConfig):
    """Sizes and wiring of a DFlash drafter, which is as wide as its target.

    Attributes:
        num_hidden_layers: Draft layers.
        block_size: Anchor plus masks, B; B - 1 tokens are drafted.
        mask_token_id: Token id that stands for "to be filled".
    """

    kind = "dflash"
    num_hidden_layers: int
    block_size: int
    mask_token_id: int


def default_taps(target_layers: int, taps: int = 5) -> tuple[int, ...]:
    """`taps` layers spread from the second to the third-last one (the published rule)."""
    if taps == 1:
        return (target_layers // 2,)
    span = target_layers - 4
    return tuple(max(0, round(1 + i * span / (taps - 1))) for i in range(taps))


class DFlashNetwork(DraftNetwork):
    """The drafter's weights under their published names.

    Embedding and LM head are the target's, unless its checkpoint brings others. `d2t` and `t2d`
    restrict what it proposes, so that only those rows of the target's head are read.

    Args:
        config: Sizes and wiring.
        draft_ids: Target ids of the draft vocabulary, ascending `[Vd]`; None for the first Vd.
        own: Tables that the checkpoint brings instead of the target's.
    """

    config: DFlashConfig

    def __init__(
        self, config: DFlashConfig, draft_ids: Tensor | None = None, own: Collection[str] = ()
    ) -> None:
        super().__init__(config, draft_ids, own)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(len(config.tap_layers) * size, size, bias=False)
        self.hidden_norm = nn.RMSNorm(size, eps)
        self.layers = nn.ModuleList(
            DraftLayer(config, inputs=size, has_norms=True) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(size, eps)
        self.lm_head = frozen_rows(config.draft_vocab_size, size) if HEAD in own else None

    @property
    def blocks(self) -> list[DraftLayer]:
        """The layers (Qwen3-style), typed."""
        return [layer for layer in self.layers if isinstance(layer, DraftLayer)]

    def head(self, of_target: Tensor) -> Tensor:
        """The LM head over the draft vocabulary `[Vd, d]`: its own, or the target's rows."""
        if self.lm_head is not None:
            return self.lm_head.weight
        if self.config.draft_vocab_size == self.config.vocab_size:
            return of_target
        return of_target[from_d2t(self.d2t)]

    def fuse(self, taps: Tensor) -> Tensor:
        """Context features `[..., d]` of concatenated taps `[..., k * d]`."""
        out: Tensor = self.hidden_norm(self.fc(taps))
        return out

    def run(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], attend: Sequence[Attend]) -> Tensor:
        """Block rows `[..., d]` through all layers, in drafting and in training.

        Args:
            x: Embeddings of the block rows.
            cos_sin: Angles of the rows.
            attend: Attention of each layer, over the injected keys and the block's own.
        """
        for layer, attend_to in zip(self.blocks, attend, strict=True):
            x = layer.run(layer.input_layernorm(x), x, cos_sin, attend_to)
        return x
