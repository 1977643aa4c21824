"""DFlash's objective: fill masked blocks that begin at random anchors of the response.

Each block is a clean anchor at position a followed by masks; its output k predicts x_{a+k}. A block
sees the context strictly before its anchor (the anchor's own tap does not exist when drafting) and
itself in full, never another block. Position weights fall as `exp(-(k - 1) / gamma)`: a later token
counts only when all earlier ones were accepted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from decoding.target import Target
from drafters.dflash import DFlashNetwork
from drafters.modules import block_attention, rotary_table
from drafters.training.features import FeatureBatch
from drafters.training.objective import Objective, ObjectiveOutput
from drafters.vocabulary import draft_labels, from_d2t


class DFlashObjective(Objective[DFlashNetwork]):
    """Cross-entropy on random blocks (arXiv 2602.06036, section 4.2).

    Args:
        network: The drafter to train (float32 weights).
        target: The target; its embedding and head are shared and frozen.
        anchors: Random anchors per text, drawn anew each visit.
        gamma: Decay of the position weights; the paper's choice for blocks of 8 is 4.
    """

    def __init__(
        self,
        network: DFlashNetwork,
        target: Target,
        anchors: int = 256,
        gamma: float = 4.0,
    ) -> None:
        self.network = network
        self.tap_layers = network.config.tap_layers
        self.anchors = anchors
        self.embedding = target.decoder.embedding
        ids = from_d2t(network.d2t)
        self.draft_head = target.decoder.head[ids].clone()
        self.labels = draft_labels(ids, target.vocab_size)
        config = network.config
        self.weights = torch.exp(-torch.arange(config.block_size - 1) / gamma)
        self.rotary = rotary_table(
            config.rope_parameters, config.head_dim, config.max_position_embeddings
        )

    def __call__(self, batch: FeatureBatch, seed: int = 0) -> ObjectiveOutput:
        """Loss of one batch, and top-1 agreement with the text at each block position."""
        anchors, valid = self._anchors(batch, seed)
        out = self.block_outputs(batch, anchors)
        rows = torch.arange(anchors.shape[0])[:, None, None]
        offsets = anchors[..., None] + torch.arange(1, self.network.config.block_size)
        labels = batch.tokens[rows, offsets.clamp(max=batch.tokens.shape[1] - 1)]
        real = valid[..., None] & (offsets < batch.lengths[:, None, None])
        return self._loss(out, self.labels[labels], real)

    def block_outputs(self, batch: FeatureBatch, anchors: Tensor) -> Tensor:
        """Normed outputs of the blocks that begin at `anchors`, behind each anchor.

        Args:
            batch: B texts.
            anchors: Anchor positions `[B, R]`.

        Returns:
            `[B, R, block_size - 1, d]`.
        """
        network, width = self.network, self.network.config.block_size
        positions = torch.arange(batch.tokens.shape[1])
        fused = network.fuse(batch.taps)
        everywhere = self.rotary.at(positions)
        visible = positions < anchors[..., None]
        blocks = self.rotary.at(anchors[..., None] + torch.arange(width))
        tokens = anchors.new_full((*anchors.shape, width), network.config.mask_token_id)
        tokens[..., 0] = batch.tokens.gather(1, anchors)
        x = F.embedding(tokens, self.embedding).float()
        for layer in network.blocks:
            normed = layer.input_layernorm(x)
            context = layer.self_attn.keys_values(fused, everywhere)
            own = layer.self_attn.keys_values(normed, blocks)
            attended = block_attention(
                layer.self_attn.queries(normed, blocks), context, visible, own
            )
            x = layer.finish(x, attended)
        out: Tensor = network.norm(x[..., 1:, :])
        return out

    def _anchors(self, batch: FeatureBatch, seed: int) -> tuple[Tensor, Tensor]:
        """Random response positions `[B, R]` without repeats, and which of them are real."""
        first, counts = batch.prompt_lengths, batch.lengths - 1 - batch.prompt_lengths
        longest = int(counts.max())
        generator = torch.Generator().manual_seed(seed)
        keys = torch.rand(len(counts), longest, generator=generator)
        keys.masked_fill_(torch.arange(longest) >= counts[:, None], 2.0)
        picks = keys.argsort(1)[:, : self.anchors]
        valid = picks < counts[:, None]
        return (first[:, None] + picks).clamp(max=batch.tokens.shape[1] - 1), valid

    def _loss(self, out: Tensor, label: Tensor, real: Tensor) -> ObjectiveOutput:
        """Weighted cross-entropy over real positions whose token can be drafted.

        Args:
            out: Normed outputs `[B, R, B' - 1, d]`.
            label: Draft-vocabulary rows `[B, R, B' - 1]`, -1 where not covered.
            real: Positions inside the text, same shape.
        """
        keep = real & (label >= 0)
        logits = F.linear(out[keep], self.draft_head.to(out.dtype))
        losses = F.cross_entropy(logits.float(), label[keep], reduction="none")
        weights = self.weights.expand_as(label)[keep]
        loss = (weights * losses).sum() / weights.sum().clamp(min=1e-6)
        hits = torch.zeros(label.shape)
        hits[keep] = (logits.argmax(-1) == label[keep]).float()
        counts = real.sum((0, 1)).clamp(min=1)
        return ObjectiveOutput(loss, list(hits.sum((0, 1)) / counts))
