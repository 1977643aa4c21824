"""Draft positions with what drafter and target think of them: what every loss is made from.

Notation: p = target's distribution, q = drafter's, both over the m draft-vocabulary tokens that
take part; A = anchors (or paths), K = draft positions behind each, y = the token that stands there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """N draft positions, spread over anchors and depths. All matrices are 0 where nothing is.

    Attributes:
        logits: The drafter's scores `[N, m]`.
        teacher: The target's scores `[N, m]`.
        label: Column of y among them `[N]`.
        kept: Where those positions are, bool `[A, K]`: real ones whose y can be drafted.
        real: Positions inside the text or path, bool `[A, K]`.
    """

    logits: Tensor
    teacher: Tensor
    label: Tensor
    kept: Tensor
    real: Tensor

    @property
    def anchors(self) -> int:
        """Anchors with something to draft behind them (at least 1, to divide by)."""
        return max(1, int(self.real[:, 0].sum()))

    @cached_property
    def _log_q(self) -> Tensor:
        return self.logits.log_softmax(-1)

    @cached_property
    def _p(self) -> Tensor:
        return self.teacher.softmax(-1)

    @cached_property
    def log_q(self) -> Tensor:
        """Log q(y) `[A, K]`."""
        return self._spread(self._log_q.gather(-1, self.label[:, None])[:, 0])

    @cached_property
    def chance(self) -> Tensor:
        """q(y) `[A, K]`; 0 where y cannot be drafted."""
        return self.log_q.exp() * self.kept

    @cached_property
    def cross_entropy(self) -> Tensor:
        """-sum_v p(v) log q(v) `[A, K]`."""
        return self._spread(-(self._p * self._log_q).sum(-1))

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of p `[A, K]`: what `cross_entropy` is at best."""
        return self._spread(-(self._p * self.teacher.log_softmax(-1)).sum(-1))

    @cached_property
    def overlap(self) -> Tensor:
        """sum_v min(p, q) = 1 - TV(p, q) `[A, K]`: the chance that a token drawn from q is kept."""
        return self._spread(torch.minimum(self._p, self._log_q.exp()).sum(-1))

    @cached_property
    def confidence(self) -> Tensor:
        """max_v q(v) `[A, K]`."""
        return self._spread(self._log_q.max(-1).values.exp())

    @cached_property
    def hits(self) -> Tensor:
        """1 where the drafter's best token is y `[A, K]`."""
        return self._spread((self.logits.argmax(-1) == self.label).float())

    def agreement(self) -> list[Tensor]:
        """Share of hits at each depth, K scalars."""
        return list(self.hits.sum(0) / self.real.sum(0).clamp(min=1))

    def _spread(self, values: Tensor) -> Tensor:
        """Values `[N]` at their places `[A, K]`."""
        return values.new_zeros(self.kept.shape).masked_scatter(self.kept, values)
