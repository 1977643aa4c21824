"""What the training loop needs of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from drafters.dflash import DFlashNetwork
from drafters.eagle3 import Eagle3Network
from drafters.training.features import FeatureBatch


@dataclass(frozen=True)
class ObjectiveOutput:
    """Result of an objective on one batch.

    Attributes:
        loss: Scalar to minimise.
        agreement: Per draft position, the share of teacher-forced top-1 predictions that equal the
            text (scalar tensors).
    """

    loss: Tensor
    agreement: list[Tensor]


Network = TypeVar("Network", Eagle3Network, DFlashNetwork)


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
