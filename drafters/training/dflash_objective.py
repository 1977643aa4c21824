"""DFlash's objective: fill masked blocks that begin at random anchors of the response.

Each block is a clean anchor at position a followed by masks; its output k predicts x_{a+k}. A block
sees the context strictly before its anchor (the anchor's own tap does not exist when drafting) and
itself in full, never another block. A later token counts only when all earlier ones were accepted,
hence position weights: fixed ones that fall as `exp(-(k - 1) / gamma)`, or D-PACE's (arXiv
2605.18810), which follow what the drafter itself can already do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from decoding.target import Target
from drafters.checkpoint import save_checkpoint
from drafters.dflash import DFlashNetwork
from drafters.modules import block_attention, rotary_table
from drafters.training.candidates import Candidates, CandidateSampler, draw
from drafters.training.features import FeatureBatch
from drafters.training.objective import Objective, ObjectiveOutput
from drafters.vocabulary import draft_labels, from_d2t

Labels = Literal["soft", "hard"]
Weighting = Literal["decay", "dpace"]


class DFlashObjective(Objective[DFlashNetwork]):
    """Cross-entropy on random blocks (arXiv 2602.06036, section 4.2).

    Args:
        network: The drafter to train (float32 weights).
        target: The target; its embedding and head are shared and frozen.
        anchors: Random anchors per text, drawn anew each visit.
        gamma: Decay of the position weights; the paper's choice for blocks of 8 is 4.
        labels: `hard` learns the text's tokens (the paper's choice), `soft` the target's
            distributions after the text's tokens.
        weighting: `decay` or `dpace`.
        sampler: Draws the draft-vocabulary rows that take part in a training batch; None takes all.
    """

    def __init__(
        self,
        network: DFlashNetwork,
        target: Target,
        anchors: int = 256,
        gamma: float = 4.0,
        labels: Labels = "hard",
        weighting: Weighting = "decay",
        sampler: CandidateSampler | None = None,
    ) -> None:
        self.network, self.sampler = network, sampler
        self.tap_layers = network.config.tap_layers
        self.anchors, self.soft, self.weighting = anchors, labels == "soft", weighting
        self.embedding = network.embedding(target.decoder.embedding)
        ids = from_d2t(network.d2t)
        self.draft_head = network.head(target.decoder.head).clone()
        own = network.lm_head is not None
        self.teacher_head = target.decoder.head[ids] if own else self.draft_head
        self.labels = draft_labels(ids, target.vocab_size)
        config = network.config
        self.weights = torch.exp(-torch.arange(config.block_size - 1) / gamma)
        self.rotary = rotary_table(
            config.rope_parameters, config.head_dim, config.max_position_embeddings
        )

    def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
        """Loss of one batch, and top-1 agreement with the text at each block position."""
        anchors, valid = self._anchors(batch, seed or 0)
        out = self.block_outputs(batch, anchors)
        rows = torch.arange(anchors.shape[0])[:, None, None]
        offsets = anchors[..., None] + torch.arange(1, self.network.config.block_size)
        inside = offsets.clamp(max=batch.tokens.shape[1] - 1)
        real = valid[..., None] & (offsets < batch.lengths[:, None, None])
        labels = self.labels[batch.tokens]
        chosen = draw(self.sampler, labels, seed)
        label = labels[rows, inside]
        keep = real & (label >= 0)
        # The target's distribution of a token is read off the position before it.
        teacher = batch.hidden[rows, inside - 1][keep] if self.soft else None
        return self._loss(out[keep], label[keep], teacher, keep, real, chosen)

    def export(self, folder: Path, target: Target) -> None:
        """Writes a checkpoint folder."""
        save_checkpoint(self.network, folder, target)

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

    def _loss(
        self,
        out: Tensor,
        label: Tensor,
        teacher: Tensor | None,
        keep: Tensor,
        real: Tensor,
        chosen: Candidates | None,
    ) -> ObjectiveOutput:
        """Weighted cross-entropy over the n positions whose token can be drafted.

        Args:
            out: Normed outputs `[n, d]`.
            label: Draft-vocabulary rows `[n]`.
            teacher: The target's final hidden states for soft labels `[n, d]`, or None.
            keep: Where those positions are `[B, R, B' - 1]`.
            real: Positions inside the text, same shape.
            chosen: Rows that take part, or None for all.
        """
        head, bias = self.draft_head, None
        if chosen is not None:
            head, bias, label = head[chosen.rows], chosen.bias, chosen.column[label]
        logits = F.linear(out, head.to(out.dtype), bias).float()
        own = F.cross_entropy(logits, label, reduction="none")
        losses = own
        if teacher is not None:
            if self.teacher_head is not self.draft_head:
                head = self.teacher_head if chosen is None else self.teacher_head[chosen.rows]
            soft = F.linear(teacher, head.to(teacher.dtype), bias).float().softmax(-1)
            losses = F.cross_entropy(logits, soft, reduction="none")
        weights = self._position_weights(own.detach(), keep)[keep]
        loss = (weights * losses).sum() / weights.sum().clamp(min=1e-6)
        hits = torch.zeros(keep.shape)
        hits[keep] = (logits.argmax(-1) == label).float()
        counts = real.sum((0, 1)).clamp(min=1)
        return ObjectiveOutput(loss, list(hits.sum((0, 1)) / counts))

    def _position_weights(self, own: Tensor, keep: Tensor) -> Tensor:
        """How much each position counts, shape of `keep`.

        Args:
            own: Negative log-probability of the text's token at each kept position `[n]`.
            keep: Which positions those are `[B, R, B' - 1]`.
        """
        if self.weighting == "decay":
            return self.weights.expand(keep.shape)
        return dpace_weights(torch.zeros(keep.shape).masked_scatter(keep, (-own).exp()))


def dpace_weights(probabilities: Tensor, smoothing: float = 0.5) -> Tensor:
    """D-PACE: position j weighs what the expected accepted length owes to it.

    With s_i = (1 - a) q_i + a, the smoothed chance that position i is right, the expected length is
    the sum over m of prod_{i <= m} s_i; its derivative by log s_j is the sum over m >= j.

    Args:
        probabilities: Drafter's probability q of the text's token `[..., n]`; 0 where it has none.
        smoothing: a; 1 weighs position j by n - j + 1.
    """
    reached = ((1 - smoothing) * probabilities + smoothing).cumprod(-1)
    return reached.flip(-1).cumsum(-1).flip(-1)
