"""What the training loop needs of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor, nn

from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.features import FeatureBatch


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


Network = TypeVar("Network", bound=nn.Module)


class Objective(ABC, Generic[Network]):
    """A loss over batches of target features.

    Attributes:
        network: The module being trained.
        tap_layers: Target layers it reads.
    """

    network: Network
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
