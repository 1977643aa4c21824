"""The full state of a run on disk: what it takes to go on as if nothing had happened."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import replacing
from draftgym.decoding.model.device import all_to_host
from draftgym.drafters.training.loop.progress import Progress
from draftgym.drafters.training.objectives.objective import Objective


def save_state(
    path: Path, objective: Objective, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Writes the state; a kill leaves the older one whole."""
    state = {
        "network": objective.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "objective": objective.state(),
        "progress": asdict(progress),
    }
    with replacing(path) as partial:
        torch.save(all_to_host(state), partial)  # to go on anywhere


def load_state(path: Path, objective: Objective, optimizer: torch.optim.Optimizer) -> Progress:
    """Takes a state back; gives where the run stood.

    Raises:
        DraftgymError: It is damaged, or of other settings.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        objective.network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        objective.restore(state.get("objective", {}))
        return Progress(**state["progress"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DraftgymError(
            f"cannot resume from {path}: {(str(error) or repr(error)).splitlines()[0]}",
            "it is damaged or of other settings; name another --run, or delete that folder",
        ) from error
