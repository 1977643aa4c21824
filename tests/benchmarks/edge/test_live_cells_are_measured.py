"""Live cells: counts what it says, sees every difference, needs no trace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.schedulers.cells_live import CellsLiveArgs, play_live
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import load_target
from draftgym.envs.cell.live import LiveTable
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from draftgym.policies.schedulers.learned import (
    LENGTHS,
    LearnedScheduler,
    SchedulerHead,
    save_scheduler,
)
from tests.tiny_text import save_drafters, save_prompts, save_target

ARMS = ("eagle3:4", "ngram:4")


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> CellsLiveArgs:
    """A tiny target on disk with drafters, prompts and a trained scheduler."""
    folder = tmp_path_factory.mktemp("live")
    target = load_target(str(save_target(folder / "target")), "float32", 1)
    head = SchedulerHead(LENGTHS, 4, USER_FEATURES, CELL_FEATURES)
    policy = LearnedScheduler(head.network(8), head)
    save_scheduler(policy, list(map(parse_arm, ARMS)), target, folder / "run" / "policy", {})
    return CellsLiveArgs(
        scheduler=("fixed", str(folder / "run" / "policy")),
        cell=CellArgs(users=3, arms=ARMS, deadline=1.0),
        rounds=12,
        prompts=str(save_prompts(folder / "prompts.jsonl")),
        max_new_tokens=10,
        target=str(folder / "target"),
        drafters=tuple(save_drafters(target, folder)),
        threads=1,
    )


def test_every_text_is_counted_for_everybody_at_both_temperatures(
    args: CellsLiveArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = play_live(replace(args, json=tmp_path / "live.json"))
    assert json.loads((tmp_path / "live.json").read_text()) == body
    rows = body["rows"]
    assert [(row["temperature"], row["scheduler"]) for row in rows] == [
        (temperature, name) for temperature in (0.0, 1.0) for name in ("fixed", "run")
    ]
    for row in rows:
        assert row["texts"] > 2 and row["same_texts"] == row["texts"]
        assert row["same_beginnings"] == row["unfinished_texts"]
        assert row["pass_seconds"] > 0 and row["served_pass_seconds"] > 0
        assert row["rows_per_pass"] == pytest.approx(3 + row["drafted"] / row["rounds"])
    assert all(row["drafted"] > 0 for row in rows if row["scheduler"] == "fixed")
    assert body["differences"] == [] and "same text" in capsys.readouterr().out


def test_a_token_that_is_not_plain_decodings_is_found(
    args: CellsLiveArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = LiveTable._verify

    def falsified(table: LiveTable, *arguments: object) -> list[int]:
        before = len(table.written)
        counts = verify(table, *arguments)  # type: ignore[arg-type]
        for _, tokens in table.written[before:]:
            tokens[3] += 1
        return counts

    monkeypatch.setattr(LiveTable, "_verify", falsified)
    body = play_live(replace(args, scheduler=("fixed",)))
    for row in body["rows"]:
        assert row["texts"] > 2 and row["same_texts"] == 0
        assert row["same_beginnings"] == row["unfinished_texts"]
    assert {one["index"] for one in body["differences"]} == {3}
    assert all(one["margin"] > 0 for one in body["differences"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"scheduler": ("heterogeneous@given",)}, "before it is written"),
        ({"scheduler": ("heterogenous",)}, "unknown rule"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"cell": CellArgs(users=2)}, "devices draft chains"),
        ({"cell": CellArgs(users=2, arms=("ngram:4", "ngram:8"))}, "several chains"),
        ({"max_new_tokens": 1}, "no text of these prompts has a round"),
    ],
)
def test_what_cannot_be_played_is_refused(
    args: CellsLiveArgs, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(DraftgymError, match=problem) as found:
        play_live(replace(args, **changes))
    assert found.value.remedy
