"""Running a drafter along given tokens, many anchors of many texts at once.

The two neural drafters differ in how they compute their output at a draft position; everything that
is trained on these outputs is shared. An anchor is the position of the newest committed token; the
k-th draft position behind it (k from 0) predicts the token at `anchor + 1 + k`.

Notation: B = texts, S = longest text, R = anchors per text, K = draft positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives.candidates import CandidateSampler, draw
from draftgym.drafters.training.objectives.losses import Scored
from draftgym.drafters.vocabulary import draft_labels, from_d2t

Network = TypeVar("Network", Eagle3Network, DFlashNetwork)


class Unroller(ABC, Generic[Network]):
    """A drafter in training, where its target computes.

    Args:
        network: Its network (float32 weights); it is moved there.
        target: The target.
        sampler: Draws the draft-vocabulary rows that take part in a training batch; None takes all.

    Attributes:
        depth: Draft positions behind an anchor, K.
        tap_layers: Target layers it reads.
        student_rows: The drafter's LM head over its draft vocabulary `[Vd, d]`.
    """

    depth: int
    student_rows: Tensor

    def __init__(
        self, network: Network, target: Target, sampler: CandidateSampler | None = None
    ) -> None:
        self.network: Network = network.to(target.device)
        self.sampler = sampler
        self.device, self.dtype = target.device, target.decoder.dtype
        self.tap_layers = network.config.tap_layers
        self.embedding = network.embedding(target.decoder.embedding)
        self.draft_ids = from_d2t(network.d2t)
        self.target_logits = target.decoder.logits
        self.labels = draft_labels(self.draft_ids, target.vocab_size)

    @abstractmethod
    def outputs(self, batch: FeatureBatch, anchors: Tensor, paths: Tensor) -> Tensor:
        """Normed outputs `[B, R, K, d]`, ready for the LM head.

        Args:
            batch: Features of the texts.
            anchors: Positions `[B, R]`.
            paths: Tokens that stand behind each anchor `[B, R, K]`. Position k may depend on those
                before it.
        """

    @abstractmethod
    def drafter(self) -> Drafter:
        """The drafter as it would be deployed now (it shares the weights); see `drafting`."""

    @contextmanager
    def drafting(self) -> Iterator[None]:
        """Where `drafter` drafts: without a gradient, and in the target's dtype, as deployed.

        Nothing is cached: autocast of older torch would keep the weights that it casts here for the
        loss, which would then have no gradient.
        """
        narrow = self.dtype != torch.float32
        dtype = self.dtype if narrow else None
        cast = torch.autocast(self.device.type, dtype, enabled=narrow, cache_enabled=False)
        with torch.no_grad(), cast:
            yield

    def score_text(
        self,
        batch: FeatureBatch,
        anchors: Tensor,
        valid: Tensor,
        seed: int | None,
    ) -> Scored:
        """Draft positions along the recorded texts.

        Args:
            batch: Features of the texts.
            anchors: Positions `[B, R]`.
            valid: Which of them are real `[B, R]`.
            seed: Of the candidates; None takes the whole draft vocabulary.
        """
        device = anchors.device
        offsets = anchors[..., None] + torch.arange(1, self.depth + 1, device=device)
        real = valid[..., None] & (offsets < batch.lengths[:, None, None])
        inside = offsets.clamp(max=batch.tokens.shape[1] - 1)
        rows = torch.arange(len(batch.tokens), device=device)[:, None, None]
        paths = batch.tokens[rows, inside]
        outputs = self.outputs(batch, anchors, paths)
        # The target's distribution of a token is read off the position before it.
        return self.score(outputs, batch.hidden[rows, inside - 1], paths, real, batch.tokens, seed)

    def score(
        self,
        outputs: Tensor,
        hidden: Tensor,
        paths: Tensor,
        real: Tensor,
        present: Tensor,
        seed: int | None,
    ) -> Scored:
        """Draft positions with the scores of drafter and target.

        Args:
            outputs: The drafter's `[..., K, d]`.
            hidden: The target's final hidden states before each token `[..., K, d]`.
            paths: The tokens `[..., K]`.
            real: Which of them count `[..., K]`.
            present: Tokens whose rows must take part (any shape).
            seed: Of the candidates; None takes the whole draft vocabulary.
        """
        labels = self.labels[paths]
        candidates = draw(self.sampler, self.labels[present], seed)
        kept = real & (labels >= 0)
        return Scored(
            candidates.scores(outputs[kept], self.student_rows),
            candidates.corrected(self.target_logits(hidden[kept], candidates.of(self.draft_ids))),
            candidates.columns(labels[kept]),
            kept.flatten(0, -2),
            real.flatten(0, -2),
        )


def pick_anchors(batch: FeatureBatch, most: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Response positions to draft from, `[B, R]`, and which of them are real.

    They are drawn on the host: a seed picks the same ones on any device.

    Args:
        batch: The texts.
        most: Random ones per text, without repeats; None takes all.
        seed: Of the draw.
    """
    first, lengths = (to_host(one) for one in (batch.prompt_lengths, batch.lengths))
    counts = lengths - 1 - first
    longest = int(counts.max())
    if most is None or most >= longest:
        picks = torch.arange(longest).expand(len(counts), -1)
    else:
        generator = torch.Generator().manual_seed(seed)
        keys = torch.rand(len(counts), longest, generator=generator)
        keys.masked_fill_(torch.arange(longest) >= counts[:, None], 2.0)
        picks = keys.argsort(1)[:, :most]
    valid = picks < counts[:, None]
    anchors = (first[:, None] + picks).clamp(max=batch.tokens.shape[1] - 1)
    return anchors.to(batch.tokens.device), valid.to(batch.tokens.device)
