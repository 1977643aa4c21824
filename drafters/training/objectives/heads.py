"""The LM heads of student and teacher, over the draft vocabulary or a batch's candidates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.drafters.training.objectives.candidates import Candidates


class DraftHead:
    """Scores of draft-vocabulary tokens, by the drafter and by its target.

    Args:
        student: The drafter's rows `[Vd, d]`.
        teacher: The target's rows of the same tokens `[Vd, d]`.
        candidates: Which m rows take part, or None for all.
    """

    def __init__(self, student: Tensor, teacher: Tensor, candidates: Candidates | None) -> None:
        self.candidates = candidates
        rows = slice(None) if candidates is None else candidates.rows
        self._student = student[rows]
        self._teacher = self._student if teacher is student else teacher[rows]

    def student(self, out: Tensor) -> Tensor:
        """Scores `[n, m]` of the drafter's normed outputs `[n, d]`, float32."""
        return self._scores(out, self._student)

    def teacher(self, hidden: Tensor) -> Tensor:
        """Scores `[n, m]` of the target's final hidden states `[n, d]`, float32."""
        return self._scores(hidden, self._teacher)

    def columns(self, labels: Tensor) -> Tensor:
        """Where rows of the draft vocabulary stand among the scores; -1 stays -1."""
        if self.candidates is None:
            return labels
        return torch.where(labels < 0, -1, self.candidates.column[labels])

    def _scores(self, x: Tensor, rows: Tensor) -> Tensor:
        bias = None if self.candidates is None else self.candidates.bias.to(x.dtype)
        return F.linear(x, rows.to(x.dtype), bias).float()
