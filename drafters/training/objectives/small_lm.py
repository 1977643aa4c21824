"""The small LM's objective: the target's distribution at every response position.

Knowledge distillation as in DistillSpec (arXiv 2310.08461), forward KL on the target's own texts:
the student is an ordinary language model, so the teacher is the target's head on its final hidden
states and every position gives a whole distribution to learn from.

The head of a large vocabulary costs more than the student's layers (49,152 rows for SmolLM2), so a
training batch scores a sample of it; tokens outside are pushed down whenever they are drawn.
Validation scores all tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from draftgym.decoding.model.target import Target
from draftgym.drafters.small_lm.network import save_small_lm
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives.candidates import CandidateSampler, draw
from draftgym.drafters.training.objectives.objective import Objective, ObjectiveOutput


class SmallLMObjective(Objective[Any]):
    """Soft cross-entropy with the target on response positions.

    Args:
        network: A transformers causal LM (float32) with the target's embedding and head, frozen.
        target: The target; its head serves teacher and student.
        sampler: Draws the tokens that take part in a training batch; None takes all.
    """

    tap_layers = ()

    def __init__(
        self, network: Any, target: Target, sampler: CandidateSampler | None = None
    ) -> None:
        self.network, self.sampler = network, sampler
        self.head = target.decoder.head

    def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
        """Loss of one batch, and top-1 agreement with the text.

        Padding lies behind the texts, where causal attention never looks.
        """
        hidden = self.network.model(batch.tokens, use_cache=False).last_hidden_state
        positions = torch.arange(batch.tokens.shape[1])
        real = positions >= batch.prompt_lengths[:, None] - 1
        real &= positions < batch.lengths[:, None] - 1
        labels = batch.tokens.roll(-1, 1)[real]
        candidates = draw(self.sampler, labels, seed)
        head = self.head[candidates.rows]
        student = F.linear(hidden[real].to(head.dtype), head).float()
        teacher = F.linear(batch.hidden[real], head).float()
        best = student.detach().argmax(-1)  # by a token's own score, before any correction
        if candidates.bias is not None:
            student, teacher = student + candidates.bias, teacher + candidates.bias
        loss = F.cross_entropy(student, teacher.softmax(-1))
        hits = best == candidates.columns(labels)
        return ObjectiveOutput(loss, [hits.float().mean()])

    def export(self, folder: Path, target: Target) -> None:
        """Writes an ordinary Hugging Face folder."""
        save_small_lm(self.network, folder, target)
