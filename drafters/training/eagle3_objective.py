"""EAGLE-3's training-time test: the head is trained on its own outputs, several steps deep.

At step k (0-based) the query at position t stands for the draft's (k+1)-th token after t + 1: it
reads its own output of step k - 1 and the embedding of x_{t+1+k}, and predicts the target's
distribution of x_{t+2+k}. It sees the step-0 keys of positions up to t, and of the later steps only
its own. The loss is the cross-entropy with the target's distribution, renormalised over the draft
vocabulary; positions whose next token lies outside it are left out.

Only response positions are queries; the prompt contributes keys and values alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from decoding.layers import RotaryTable
from decoding.target import Target
from drafters.checkpoint import save_checkpoint
from drafters.eagle3 import Eagle3Network
from drafters.modules import block_attention, rotary_table
from drafters.training.candidates import Candidates, CandidateSampler, draw
from drafters.training.features import FeatureBatch
from drafters.training.objective import Objective, ObjectiveOutput
from drafters.vocabulary import draft_labels, from_d2t


class Eagle3Objective(Objective[Eagle3Network]):
    """Training-time test (arXiv 2503.01840, section 3).

    Args:
        network: The head to train (float32 weights).
        target: The target; its head gives the soft labels.
        steps: Draft steps unrolled.
        decay: Weight of step k is `decay ** k`.
        sampler: Draws the draft-vocabulary rows that take part in a training batch; None takes all.
    """

    def __init__(
        self,
        network: Eagle3Network,
        target: Target,
        steps: int = 5,
        decay: float = 0.8,
        sampler: CandidateSampler | None = None,
    ) -> None:
        self.network, self.sampler = network, sampler
        self.tap_layers = network.config.tap_layers
        self.steps, self.decay = steps, decay
        self.embedding = network.embedding(target.decoder.embedding)
        ids = from_d2t(network.d2t)
        self.draft_head = target.decoder.head[ids].clone()
        self.labels = draft_labels(ids, target.vocab_size)
        config = network.config
        self.rotary: RotaryTable = rotary_table(
            config.rope_parameters, config.head_dim, config.max_position_embeddings
        )

    def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
        """Loss of one batch, and top-1 agreement with the text at each step."""
        network, layer = self.network, self.network.midlayer
        labels = self.labels[batch.tokens]
        head = _Head(network, self.draft_head, draw(self.sampler, labels, seed))
        index, valid = self._queries(batch)
        rows = torch.arange(index.shape[0])[:, None]
        feature = network.fuse(batch.taps)
        pair = layer.pair(self._embed(batch.tokens.roll(-1, 1)), feature)
        everywhere = self.rotary.at(torch.arange(batch.tokens.shape[1]))
        context = layer.self_attn.keys_values(pair, everywhere)
        visible = torch.arange(batch.tokens.shape[1]) <= index[..., None]  # [B, R, S]
        teacher = head.teacher(batch.hidden)
        pair, feature = pair[rows, index], feature[rows, index]
        loss, agreement = torch.zeros(()), []
        own: list[tuple[Tensor, Tensor]] = []
        for step in range(self.steps):
            cos_sin = self.rotary.at(index + step)
            queries = layer.self_attn.queries(pair, cos_sin).unsqueeze(2)
            if step:
                own.append(layer.self_attn.keys_values(pair, cos_sin))
            attended = block_attention(queries, context, visible, _stack(own)).squeeze(2)
            feature = layer.finish(feature, attended)
            usable = valid & (index + step + 2 < batch.lengths[:, None])
            at = (rows.expand_as(index)[usable], (index + step + 1)[usable])
            label = head.columns(labels[at[0], at[1] + 1])
            step_loss, hits = _step_loss(head.logits(feature[usable]), teacher[at], label)
            loss = loss + self.decay**step * step_loss
            agreement.append(hits)
            feature = network.carry(feature)
            following = batch.tokens[rows, (index + step + 2).clamp(max=batch.tokens.shape[1] - 1)]
            pair = layer.pair(self._embed(following), feature)
        return ObjectiveOutput(loss, agreement)

    def export(self, folder: Path, target: Target) -> None:
        """Writes a checkpoint folder."""
        save_checkpoint(self.network, folder, target)

    def _queries(self, batch: FeatureBatch) -> tuple[Tensor, Tensor]:
        """Positions to draft from, padded `[B, R]`, and which of them are real."""
        first = batch.prompt_lengths - 1
        counts = batch.lengths - 2 - first  # the last query's label is the last token
        index = first[:, None] + torch.arange(int(counts.max()))
        valid = torch.arange(index.shape[1]) < counts[:, None]
        return index.clamp(max=batch.tokens.shape[1] - 1), valid

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding).float()


class _Head:
    """The LM heads of student and teacher, over the whole draft vocabulary or a batch's candidates.

    Args:
        network: The student.
        teacher: The target's rows of the draft vocabulary `[Vd, d]`.
        candidates: What takes part, or None for all.
    """

    def __init__(
        self, network: Eagle3Network, teacher: Tensor, candidates: Candidates | None
    ) -> None:
        self.network, self.candidates = network, candidates
        self.rows = teacher if candidates is None else teacher[candidates.rows]

    def teacher(self, hidden: Tensor) -> Tensor:
        """The target's scores `[..., m]` of its final hidden states."""
        bias = None if self.candidates is None else self.candidates.bias.to(hidden.dtype)
        return F.linear(hidden, self.rows.to(hidden.dtype), bias)

    def logits(self, out: Tensor) -> Tensor:
        """The student's scores `[..., m]` of its layer outputs."""
        if self.candidates is None:
            return self.network.logits(out)
        weight = self.network.lm_head.weight[self.candidates.rows]
        return F.linear(self.network.norm(out), weight, self.candidates.bias)

    def columns(self, labels: Tensor) -> Tensor:
        """Where rows of the draft vocabulary stand among the scores; -1 stays -1."""
        if self.candidates is None:
            return labels
        return torch.where(labels < 0, -1, self.candidates.column[labels])


def _step_loss(logits: Tensor, teacher: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Soft cross-entropy, and whether the top-1 token equals the text's, over usable rows."""
    covered = label >= 0
    soft = teacher[covered].float().softmax(-1)
    losses = F.cross_entropy(logits[covered].float(), soft, reduction="none")
    rows = max(1, label.shape[0])  # short texts have no rows at the last steps
    return losses.sum() / rows, (logits.argmax(-1) == label).sum() / rows


def _stack(own: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """Keys and values of the later steps as `[B, R, steps, G, D]`; None before the first."""
    if not own:
        return None
    keys, values = zip(*own, strict=True)
    return torch.stack(keys, 2), torch.stack(values, 2)
