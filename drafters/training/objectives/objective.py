"""What the training loop minimises: an objective, and the one on recorded text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from draftgym.decoding.model.target import Target
from draftgym.drafters.checkpoint import save_checkpoint
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives.losses import Loss, Scored
from draftgym.drafters.training.objectives.unroll import Unroller, pick_anchors


@dataclass(frozen=True)
class ObjectiveOutput:
    """Result of an objective on one batch.

    Attributes:
        loss: Scalar to minimise.
        agreement: Per draft position, the share of teacher-forced top-1 predictions that equal the
            text (scalar tensors).
        metrics: What else is worth watching, by name.
    """

    loss: Tensor
    agreement: list[Tensor]
    metrics: dict[str, float] = field(default_factory=dict)


class Objective(ABC):
    """A loss over batches of target features.

    Attributes:
        network: The module (`torch.nn.Module`) being trained.
        tap_layers: Target layers it reads.
    """

    network: Any
    tap_layers: tuple[int, ...]

    @abstractmethod
    def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
        """Loss and agreement on one batch.

        Args:
            batch: Features of some texts.
            seed: Seed of whatever is drawn, so that a resumed run draws what it would have drawn.
                None for validation: the whole vocabulary takes part, and draws are always the same.
        """

    @abstractmethod
    def export(self, folder: Path, target: Target) -> None:
        """Writes the network as a checkpoint folder that `load_drafter` takes.

        Args:
            folder: Where to.
            target: What the network is trained for.
        """

    def state(self) -> dict[str, Any]:
        """What it remembers from one update to the next, to be saved: tensors and numbers."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        del state  # what another objective remembered is no use to this one


class RecordedObjective(Objective):
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
        scored = self.scored(batch, seed)
        return ObjectiveOutput(self.loss(scored), scored.agreement())

    def scored(self, batch: FeatureBatch, seed: int | None) -> Scored:
        """Draft positions behind the anchors of one batch."""
        anchors, valid = pick_anchors(batch, self.anchors, seed or 0)
        return self.unroller.score_text(batch, anchors, valid, seed)

    def export(self, folder: Path, target: Target) -> None:
        """Writes a checkpoint folder."""
        save_checkpoint(self.network, folder, target)
