"""`evaluate.py --scheduler`: figures by hand, paired cells, a table, JSON and a page."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.agents.scheduler.evaluation import (
    EvaluateSchedulersArgs,
    chosen_schedulers,
    evaluate_schedulers,
)
from draftgym.agents.scheduler.totals import count_rounds, jain, play_cells
from draftgym.cli import run
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.cell import Cell, CellRound, CellTime
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from draftgym.envs.scheduler.planners import RulePlanner, play_rounds
from draftgym.policies.schedulers.learned import (
    LENGTHS,
    LearnedScheduler,
    SchedulerHead,
    save_scheduler,
)
from tests.handmade.users import MODES, user_table, user_traces
from tests.traces import save_traces


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Traces on disk, and a trained scheduler in `run/policy`."""
    traces = user_traces()
    save_traces(traces, tmp_path)
    head = SchedulerHead(LENGTHS, 6, USER_FEATURES, CELL_FEATURES)
    policy = LearnedScheduler(head.network(8), head)
    save_scheduler(policy, user_table().arms, traces.origin, tmp_path / "run" / "policy", {})
    return tmp_path


def args_of(folder: Path, *scheduler: str) -> EvaluateSchedulersArgs:
    """A small comparison."""
    cell = CellArgs(users=3, deadline=1.0)
    return EvaluateSchedulersArgs(scheduler=scheduler, traces=folder, cell=cell, cells=3, rounds=10)


def hand_round(
    seconds: float,
    committed: tuple[int, int],
    drafted: tuple[int, int] = (0, 0),
    newcomers: tuple[bool, bool] = (False, False),
    present: tuple[bool, bool] = (True, True),
) -> CellRound:
    """A round of one cell with two places, of which all took `seconds`."""
    nothing, one = np.zeros(1), np.array([seconds])
    new = np.array([newcomers])
    taken = np.array([committed]) > 0
    time = CellTime(one, *[nothing] * 5)
    counts = np.array([drafted]), np.array([committed]), np.zeros((1, 2), np.int64)
    arms = np.array([[0, 1]])
    shares = np.zeros((1, 2))
    return CellRound(
        np.array([present]), taken, *counts, arms, shares, time, nothing, new, new, new
    )


def test_figures_are_what_a_hand_reckons() -> None:
    one = count_rounds([hand_round(1.0, (1, 3), (2, 4)), hand_round(3.0, (3, 1), (4, 0))], 2)
    assert one.tokens[0] == 8 and one.seconds[0] == 4.0 and one.goodput == 2.0
    assert one.round_goodput[0] == pytest.approx((4 / 1 + 4 / 3) / 2)
    assert one.drafted[0] == 10 and one.accepted[0] == 4 and one.wasted == pytest.approx(0.6)
    assert one.rates[0].tolist() == [1.0, 1.0] and one.fairness == 1.0
    # 3 tokens took 1/3 s each, 1 took 1 s, 3 took 1 s each, 1 took 3 s.
    assert one.latency(30) == pytest.approx(1 / 3) and one.latency(50) == 1.0
    assert one.latency(99) == 3.0
    # The first drafts in both rounds, the second in one of them; all time is the first piece.
    assert one.by_arm.tolist() == [[[2, 2, 6, 4], [2, 1, 4, 4]]]
    assert one.pieces.tolist() == [[4.0, 0, 0, 0, 0, 0]]


def test_waiting_counts_from_when_a_user_was_verified_last() -> None:
    one = count_rounds(
        [hand_round(1.0, (1, 0)), hand_round(1.0, (1, 0)), hand_round(2.0, (1, 2))], 2
    )
    assert sorted(one.token_seconds.tolist()) == [1.0, 1.0, 2.0, 2.0]


def test_who_comes_into_a_place_is_another_user() -> None:
    first = hand_round(2.0, (2, 4), newcomers=(True, False))
    one = count_rounds([first, hand_round(2.0, (6, 4))], 2)
    assert sorted(one.rates[0].tolist()) == [1.0, 2.0, 3.0]
    empty = [hand_round(2.0, (0, 4), present=(False, True)) for _ in range(2)]
    assert count_rounds(empty, 2).rates[0].tolist() == [2.0]


def test_jains_index_is_1_for_equals_and_1_over_n_for_one_who_has_all() -> None:
    assert jain(np.ones(5)) == 1.0 and jain(np.array([3.0, 0, 0, 0])) == 0.25
    assert jain(np.zeros(3)) == 1.0


@pytest.mark.parametrize("mode", ["synchronous", "everything"])
def test_totals_are_the_sums_of_what_is_played(mode: str) -> None:
    cell, seeds = Cell(user_table(), MODES[mode], 3), partial(np.random.default_rng, 0)
    one = play_cells("heterogeneous@beta", cell, seeds(), 20)
    rounds = list(play_rounds(partial(RulePlanner, "heterogeneous@beta"), cell, seeds(), 20))
    committed = np.array([played.committed.sum(-1) for played in rounds])
    seconds = np.array([played.time.total for played in rounds])
    np.testing.assert_allclose(one.tokens, committed.sum(0))
    np.testing.assert_allclose(one.seconds, seconds.sum(0))
    np.testing.assert_allclose(one.round_goodput, (committed / seconds).mean(0))
    assert one.drafted.sum() == sum(played.drafted.sum() for played in rounds)
    assert one.accepted.sum() == committed.sum() - sum(played.taken.sum() for played in rounds)
    assert one.token_counts.sum() == one.tokens.sum()
    np.testing.assert_allclose(one.pieces.sum(-1), one.seconds)
    np.testing.assert_allclose(one.by_arm[..., 2].sum(-1), one.drafted)
    np.testing.assert_allclose(one.by_arm[..., 3].sum(-1), one.tokens)


def test_everybody_plays_the_same_cells_and_the_first_is_the_reference(folder: Path) -> None:
    specs = "fixed", "homogeneous@mean", "p2p", str(folder / "run" / "policy")
    rows = evaluate_schedulers(args_of(folder, *specs))
    assert [row.scheduler for row in rows] == ["fixed", "homogeneous@mean", "p2p", "run"]
    alone = evaluate_schedulers(args_of(folder, "homogeneous@mean"))[0]
    assert alone.cell_goodputs == rows[1].cell_goodputs, "whoever else plays"
    first = rows[0]
    assert (first.over_first.low, first.over_first.value, first.over_first.high) == (1, 1, 1)
    assert rows[1].over_first.value == pytest.approx(rows[1].goodput / first.goodput)
    for row in rows:
        low, middle, high = row.user_rates
        assert low <= middle <= high and 1 / 3 <= row.fairness <= 1
        assert list(row.token_latency.values()) == sorted(row.token_latency.values())
        assert 0 <= row.wasted <= 1 and sum(row.time.values()) == pytest.approx(1)
        for use in row.arms.values():
            assert use.committed >= 1 and use.drafted >= use.drafting >= 0


def test_a_scheduler_is_served_to_more_users_than_it_was_trained_with(folder: Path) -> None:
    args = args_of(folder, str(folder / "run" / "policy"))
    assert evaluate_schedulers(replace(args, cell=CellArgs(users=9)))[0].goodput > 0


def test_figures_reach_json_and_a_page(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    where = {"json": folder / "out.json", "report": folder / "report"}
    rows = evaluate_schedulers(
        replace(args_of(folder, "fixed", "heterogeneous@given"), known=folder, **where)
    )
    body = json.loads((folder / "out.json").read_text())
    assert [one["goodput"] for one in body["schedulers"]] == [row.goodput for row in rows]
    assert {"cpu", "target", "fingerprint", "cell", "git_revision"} <= set(body["environment"])
    page = (folder / "report" / "index.html").read_text()
    assert "heterogeneous@given" in page and f"{rows[1].goodput:.2f}" in page
    assert (folder / "report" / "goodput.svg").read_text().startswith("<")


def test_schedulers_that_cannot_play_are_refused_before_anything_is_played(folder: Path) -> None:
    origin = user_traces().origin
    for specs, problem in [
        (("fixed", "heterogenous@beta"), "unknown rule"),
        (("fixed", "fixed"), "named twice"),
        (("runs/nowhere",), "not a policy folder"),
    ]:
        with pytest.raises(DraftgymError, match=problem) as caught:
            chosen_schedulers(specs, origin)
        assert caught.value.remedy
    with pytest.raises(DraftgymError, match="one at least"):
        evaluate_schedulers(replace(args_of(folder, "fixed"), rounds=0))


def test_scheduler_options_are_apart_from_the_routers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--cell.users", "2", "--cell.deadline", "1", "--cells", "2", "--rounds", "3"
    run("evaluate", ["--scheduler", "fixed", "p2p", "--traces", str(folder), *small])
    told = capsys.readouterr().out
    assert "p2p" in told and "Jain" in told and "who drafts" in told
    with pytest.raises(SystemExit):
        run("evaluate", ["--help"])
    assert "--policies" in capsys.readouterr().out
