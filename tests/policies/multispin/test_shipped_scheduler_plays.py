"""The shipped scheduler serves any number of users, each with plain decoding's text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.schedulers.cells_live import CellsLiveArgs, play_live
from benchmarks.system.losslessness import larger_than_rounding
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.agents.scheduler.totals import play_cells
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.planners import LearnedPlanner
from draftgym.policies.folder import read_body
from draftgym.policies.schedulers.learned import load_scheduler
from tests.handmade.traces import handmade_traces

SHIPPED = Path(__file__).resolve().parents[3] / "checkpoints" / "scheduler-smollm2-135m"


@pytest.mark.parametrize("users", [1, 4, 20])
def test_it_serves_any_number_of_users(users: int) -> None:
    body = read_body(SHIPPED)
    who = SimpleNamespace(name=body["target"], fingerprint=body["target_fingerprint"])
    policy = load_scheduler(SHIPPED, who)
    rng = np.random.default_rng(0)
    arms = {arm: lambda signals, hidden: rng.geometric(0.4, len(signals)) for arm in body["arms"]}
    cell = Cell(ChainTable(handmade_traces(arms, length=40)), CellSettings(users=users), 2)
    reached = play_cells(lambda one: LearnedPlanner(policy, one), cell, rng, 20)
    assert (reached.tokens >= 20 * users).all() and reached.drafted.sum() > 0


@pytest.mark.slow
@pytest.mark.real_model
def test_users_that_it_serves_read_plain_decodings_texts(
    real: tuple[Target, dict[str, Drafter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live: real devices' drafts, one ragged pass of the real target, temperatures 0 and 1."""
    monkeypatch.setattr(CellsLiveArgs, "load", lambda _: real)
    args = CellsLiveArgs(
        scheduler=(str(SHIPPED),),
        cell=CellArgs(users=3, arms=tuple(read_body(SHIPPED)["arms"])),
        rounds=6,
        per_category=1,
        max_new_tokens=12,
    )
    outcome = play_live(args)
    assert not larger_than_rounding(outcome["differences"])
    for row in outcome["rows"]:
        assert row["same_texts"] + row["same_beginnings"] >= 3 and row["tokens"] >= 18


def test_its_card_tells_how_it_was_made() -> None:
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for told in ("train_scheduler.py", "fingerprint", "evaluate --scheduler"):
        assert told in card
