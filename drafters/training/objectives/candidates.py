"""Softmax over a sample of the vocabulary: what makes training on a large vocabulary affordable.

A language-model head over all V tokens costs as much as the rest of a small drafter. A batch needs
only some of its rows: the tokens that occur in it, the most frequent ones, and a random sample that
stands for all others. Each sampled row's score gets `log(rest / sampled)` added, so that a sum over
the sample estimates the sum over the rest; teacher and student are corrected alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """The m rows of a head that take part in one batch; by default all V of them.

    Attributes:
        rows: Ascending row numbers `[m]`.
        bias: What is added to the scores of these rows `[m]`.
        column: For every row of the head its place in `rows`, -1 if it has none, `[V]`.
    """

    rows: Tensor | None = None
    bias: Tensor | None = None
    column: Tensor | None = None

    def of(self, head: Tensor) -> Tensor:
        """Their rows `[m, ...]` of a head `[V, d]`, or of what else is said of each row."""
        return head if self.rows is None else head[self.rows]

    def scores(self, x: Tensor, head: Tensor) -> Tensor:
        """Corrected scores `[n, m]`, float32, of vectors `[n, d]` under a head `[V, d]`."""
        return self.corrected(F.linear(x, self.of(head).to(x.dtype)).float())

    def corrected(self, scores: Tensor) -> Tensor:
        """Scores `[n, m]` of their rows, standing for those of all rows."""
        return scores if self.bias is None else scores + self.bias

    def columns(self, labels: Tensor) -> Tensor:
        """Where rows of the head stand among the scores; -1 stays -1."""
        return labels if self.column is None else torch.where(labels < 0, -1, self.column[labels])


class CandidateSampler:
    """Draws the candidates of a batch.

    Args:
        vocab: Rows of the head, V.
        frequent: Rows that always take part (ids).
        others: Further rows drawn at random per batch; 0 takes every row, always.
    """

    def __init__(self, vocab: int, frequent: Tensor, others: int) -> None:
        self.vocab, self.frequent, self.others = vocab, frequent, others

    def draw(self, present: Tensor, seed: int) -> Candidates:
        """Candidates for a batch, on its device; those drawn are the same on any.

        Args:
            present: Rows that must take part (any shape; negative ones are ignored).
            seed: Seed of the draw.
        """
        device = present.device
        chosen = torch.zeros(self.vocab, dtype=torch.bool, device=device)
        chosen[self.frequent.to(device)] = True
        chosen[present[present >= 0]] = True
        rest = drawn = (~chosen).nonzero()[:, 0]
        if self.others and len(rest) > self.others:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(rest), generator=generator)[: self.others]
            drawn = rest[order.to(device)]
        bias = torch.zeros(self.vocab, device=device)
        if len(drawn):
            bias[drawn] = float(torch.log(torch.tensor(len(rest) / len(drawn))))
        chosen[drawn] = True
        rows = chosen.nonzero()[:, 0]
        column = torch.full((self.vocab,), -1, device=device)
        column[rows] = torch.arange(len(rows), device=device)
        return Candidates(rows, bias[rows], column)


def draw(sampler: CandidateSampler | None, present: Tensor, seed: int | None) -> Candidates:
    """The candidates of a training batch; all rows without a sampler or (no seed) in validation."""
    return Candidates() if sampler is None or seed is None else sampler.draw(present, seed)
