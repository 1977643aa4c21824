"""A run folder in which somebody is at work is left alone, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import train_router
from draftgym.agents.scheduler.args import SchedulerArgs
from draftgym.agents.scheduler.train import train_scheduler
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.provenance import sole_writer
from draftgym.drafters.training.main import Eagle3Args, train

NOWHERE = Path("nothing-is-there")
TRAININGS: list[tuple[Callable[[Any], Path], Callable[[Path], Any]]] = [
    (train_router, lambda run: RouterArgs(traces=NOWHERE, run=run)),
    (train_scheduler, lambda run: SchedulerArgs(traces=NOWHERE, run=run)),
    (train, lambda run: Eagle3Args(corpus=NOWHERE, run=run)),
]


@pytest.mark.parametrize(("train", "asked"), TRAININGS, ids=("router", "scheduler", "drafter"))
def test_a_second_training_in_a_folder_is_refused(
    train: Callable[[Any], Path], asked: Callable[[Path], Any], tmp_path: Path
) -> None:
    args = asked(tmp_path)
    with sole_writer(tmp_path, "--run"), pytest.raises(DraftgymError) as refused:
        train(args)
    assert refused.value.problem == f"another process is writing to {tmp_path}"
    assert "--run" in refused.value.remedy
