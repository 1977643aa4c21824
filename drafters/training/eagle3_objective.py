"""EAGLE-3's training-time test: the head is trained on its own outputs, several steps deep.

At step k (0-based) the query at position t stands for the draft's (k+1)-th token after t + 1: it
reads its own output of step k - 1 and the embedding of x_{t+1+k}, and predicts the target's
distribution of x_{t+2+k}. It sees the step-0 keys of positions up to t, and of the later steps only
its own. The loss is the cross-entropy with the target's distribution, renormalised over the draft
vocabulary; positions whose next token lies outside it are left out.

Only response positions are queries; the prompt contributes keys and values alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from decoding.layers import RotaryTable
from decoding.target import Target
from drafters.eagle3 import Eagle3Network
from drafters.modules import block_attention, rotary_table
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
    """

    def __init__(
        self, network: Eagle3Network, target: Target, steps: int = 5, decay: float = 0.8
    ) -> None:
        self.network = network
        self.tap_layers = network.config.tap_layers
        self.steps, self.decay = steps, decay
        self.embedding = target.decoder.embedding
        ids = from_d2t(network.d2t)
        self.draft_head = target.decoder.head[ids].clone()
        self.labels = draft_labels(ids, target.vocab_size)
        config = network.config
        self.rotary: RotaryTable = rotary_table(
            config.rope_parameters, config.head_dim, config.max_position_embeddings
        )

    def __call__(self, batch: FeatureBatch, seed: int = 0) -> ObjectiveOutput:
        """Loss of one batch, and top-1 agreement with the text at each step."""
        network, layer = self.network, self.network.midlayer
        index, valid = self._queries(batch)
        rows = torch.arange(index.shape[0])[:, None]
        feature = network.fc(batch.taps)
        pair = layer.pair(self._embed(batch.tokens.roll(-1, 1)), feature)
        everywhere = self.rotary.at(torch.arange(batch.tokens.shape[1]))
        context = layer.self_attn.keys_values(pair, everywhere)
        visible = torch.arange(batch.tokens.shape[1]) <= index[..., None]  # [B, R, S]
        teacher = F.linear(batch.hidden, self.draft_head.to(batch.hidden.dtype))
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
            step_loss, hits = self._step_loss(feature[usable], teacher[at], batch.tokens, at)
            loss = loss + self.decay**step * step_loss
            agreement.append(hits)
            following = batch.tokens[rows, (index + step + 2).clamp(max=batch.tokens.shape[1] - 1)]
            pair = layer.pair(self._embed(following), feature)
        return ObjectiveOutput(loss, agreement)

    def _queries(self, batch: FeatureBatch) -> tuple[Tensor, Tensor]:
        """Positions to draft from, padded `[B, R]`, and which of them are real."""
        first = batch.prompt_lengths - 1
        counts = batch.lengths - 2 - first  # the last query's label is the last token
        index = first[:, None] + torch.arange(int(counts.max()))
        valid = torch.arange(index.shape[1]) < counts[:, None]
        return index.clamp(max=batch.tokens.shape[1] - 1), valid

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding).float()

    def _step_loss(
        self, out: Tensor, teacher: Tensor, tokens: Tensor, at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Soft cross-entropy, and whether the top-1 token equals the text's, over usable rows."""
        logits = self.network.logits(out)
        label = self.labels[tokens[at[0], at[1] + 1]]
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
