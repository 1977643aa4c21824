"""From a script's settings to what is minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import Tensor

from draftgym.decoding.model.target import Target
from draftgym.drafters.training.objectives.losses import (
    Labels,
    Loss,
    dpace_loss,
    length_loss,
    lk_alpha_loss,
    lk_loss,
    plain_loss,
)
from draftgym.drafters.training.objectives.objective import Objective
from draftgym.drafters.training.objectives.recorded import RecordedObjective
from draftgym.drafters.training.objectives.unroll import Unroller
from draftgym.drafters.training.objectives.vsd import VSDObjective, VSDSettings

ObjectiveName = Literal["plain", "lk", "lk-alpha", "dpace", "length", "vsd"]


@dataclass(frozen=True)
class LossSettings:
    """The losses on recorded text."""

    decay: float = 0.8
    """Weight of draft position k is decay ** k (plain, lk, lk-alpha, and under vsd its anchor)."""
    labels: Labels = "soft"
    """Learn the target's distributions (soft) or the text's tokens (hard); plain and dpace."""
    eta: float = 3.0
    """lk: how fast it moves from divergence to acceptance."""
    ground: float = 0.1
    """length: how much of the plain loss is added."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """Knobs of the objectives."""

    loss: LossSettings = field(default_factory=LossSettings)
    """The losses on recorded text."""
    vsd: VSDSettings = field(default_factory=VSDSettings)
    """Variational training."""


LOSSES: dict[ObjectiveName, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "plain": (plain_loss, ("decay", "labels")),
    "lk": (lk_loss, ("decay", "eta")),
    "lk-alpha": (lk_alpha_loss, ("decay",)),
    "dpace": (dpace_loss, ("labels",)),
    "length": (length_loss, ("decay", "ground")),
    "vsd": (plain_loss, ("decay", "labels")),
}
"""The loss on recorded text of each objective (of vsd: its anchor), and which settings it reads."""


def make_loss(name: ObjectiveName, settings: LossSettings) -> Loss:
    """The loss of that name; `vsd` is anchored to the plain one."""
    loss, knobs = LOSSES[name]
    return partial(loss, **{knob: getattr(settings, knob) for knob in knobs})


def build_objective(
    name: ObjectiveName,
    settings: ObjectiveSettings,
    unroller: Unroller[Any],
    target: Target,
    anchors: int | None,
) -> Objective[Any]:
    """An objective for a drafter in training.

    Args:
        name: Which.
        settings: Its knobs.
        unroller: The drafter.
        target: The target.
        anchors: Random anchors per text and visit; None takes all.
    """
    loss = make_loss(name, settings.loss)
    if name == "vsd":
        return VSDObjective(unroller, target, loss, settings.vsd, anchors)
    return RecordedObjective(unroller, loss, anchors)
