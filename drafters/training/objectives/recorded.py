"""Objectives on recorded text: any loss of `losses`, for either drafter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives.losses import Loss
from draftgym.drafters.training.objectives.objective import Objective, ObjectiveOutput
from draftgym.drafters.training.objectives.unroll import Unroller, pick_anchors


class RecordedObjective(Objective[Any]):
    """A loss over the draft positions behind anchors of the recorded texts.

    Only response positions are anchors; the prompt is context alone.

    Args:
        unroller: The drafter in training.
        loss: What to minimise.
        anchors: Random anchors per text and visit; None takes all.
    """

    def __init__(self, unroller: Unroller[Any], loss: Loss, anchors: int | None = None) -> None:
        self.unroller, self.loss, self.anchors = unroller, loss, anchors
        self.network, self.tap_layers = unroller.network, unroller.tap_layers

    def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
        """Loss of one batch, and top-1 agreement with the text at each draft position."""
        anchors, valid = pick_anchors(batch, self.anchors, seed or 0)
        scored = self.unroller.score_text(batch, anchors, valid, seed)
        return ObjectiveOutput(self.loss(scored), scored.agreement())

    def export(self, folder: Path, target: Target) -> None:
        """Writes a checkpoint folder."""
        self.unroller.export(folder, target)
