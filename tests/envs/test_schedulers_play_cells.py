"""The papers' schedulers play cells, and the environments as they play cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftgym.agents.scheduler.totals import play_cells
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.env import SchedulerEnv, SchedulerSharesEnv
from draftgym.envs.scheduler.planners import RulePlanner, SchedulerPolicy
from tests.handmade.users import MODES, user_table, user_traces

SPECS = (
    "fixed",
    "uniform-bandwidth",
    "homogeneous@mean",
    "heterogeneous@beta",
    "heterogeneous@average+found",
    "theorem-1@average",
)


@pytest.fixture(scope="module")
def table() -> ChainTable:
    return user_table()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("mode", ["churn", "window"])
def test_schedulers_of_multispin_play_cells(spec: str, mode: str, table: ChainTable) -> None:
    cell = Cell(table, MODES[mode], 2)
    reached = play_cells(spec, cell, np.random.default_rng(0), 25)
    assert (reached.tokens > 25).all() and np.isfinite(reached.goodput).all()
    assert (reached.accepted <= reached.drafted).all()


def test_a_scheduler_believes_what_the_observation_says(table: ChainTable) -> None:
    cell = Cell(table, MODES["churn"])
    cell.reset(np.random.default_rng(0))
    planner = RulePlanner("heterogeneous@beta", cell)
    for _ in range(40):
        planner.learn(cell.step(planner.plan()))
        active, given = cell.users.active, cell.users.means[cell.users.task]
        theirs = planner.scheduler.belief.estimate(given)
        np.testing.assert_allclose(cell.users.posterior.estimate(given)[active], theirs[active])


def often_in_vain() -> ChainTable:
    """Texts of which prompt lookup finds something at every third position only."""
    made = user_traces()
    for text in made.texts:
        arm = text.arms["ngram:8"]
        empty = np.arange(len(arm.drafted)) % 3 > 0
        drafted, committed = np.where(empty, 0, arm.drafted), np.where(empty, 1, arm.committed)
        text.arms["ngram:8"] = replace(arm, drafted=drafted, committed=committed)
    return ChainTable(made)


def test_who_looks_plans_nothing_for_lookups_that_find_nothing() -> None:
    cell = Cell(often_in_vain(), MODES["churn"])
    cell.reset(np.random.default_rng(1))
    blind, looks = (RulePlanner(f"heterogeneous@beta{more}", cell) for more in ("", "+found"))
    in_vain, of_lookups = 0, 0
    for _ in range(60):
        copies = cell.deciding & (cell.users.token_seconds == 0)
        asked = np.full(cell.shape, cell.longest)
        empty = copies & (cell.table.drafted(cell.users.arm, cell.users.row, asked) == 0)
        in_vain += int(blind.plan().lengths[empty].sum())
        plan = looks.plan()
        assert not plan.lengths[empty].any()
        of_lookups += int(plan.lengths[copies & ~empty].sum())
        played = cell.step(plan)
        for one in (blind, looks):
            one.learn(played)
    assert in_vain > 0 and of_lookups > 0


def test_scheduler_plays_the_environment_as_it_plays_the_cell(table: ChainTable) -> None:
    env = SchedulerSharesEnv(table, MODES["synchronous"], price=0.0)
    observation, _ = env.reset(seed=4)
    policy, tokens, seconds = SchedulerPolicy("fixed", env), 0.0, 0.0
    for _ in range(12):
        action, _ = policy.predict(observation)
        observation, reward, _, _, info = env.step(action)
        tokens, seconds = tokens + reward, seconds + info["seconds"]["total"]
    env.reset(seed=4)
    cell = Cell(table, MODES["synchronous"])
    reached = play_cells("fixed", cell, np.random.default_rng(4), 12)
    assert reached.tokens[0] == tokens
    assert reached.seconds[0] == pytest.approx(seconds, rel=1e-4)


def test_users_in_turn_take_the_sum_of_their_turns(table: ChainTable) -> None:
    cell = Cell(table, MODES["synchronous"])
    cell.reset(np.random.default_rng(0))
    plan = RulePlanner("p2p", cell).plan()
    after = cell.step(plan)
    alone = cell.server.fixed + cell.server.each
    draft = (after.drafted * cell.users.token_seconds).sum()
    assert after.time.verify[0] == pytest.approx(3 * alone)
    assert after.time.draft[0] == pytest.approx(draft)
    env = SchedulerEnv(table, MODES["synchronous"])
    observation, _ = env.reset(seed=0)
    with pytest.raises(DraftgymError, match="in turn"):
        SchedulerPolicy("p2p", env).predict(observation)
