"""Channels are reckoned with as they are believed to be, by a rule or by what an agent says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from draftgym.agents.common.settings import BeliefFit
from draftgym.agents.scheduler.belief_fitting import fit_beliefs
from draftgym.agents.scheduler.totals import play_cells
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.actions import BeliefActions, TiltActions
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES, observe_cell
from draftgym.policies.multispin.channels import MOST_TILT, alike_plan, tilt
from draftgym.policies.multispin.heterogeneous import heterogeneous_plan
from draftgym.policies.schedulers.learned import TILTS, LearnedScheduler, SchedulerHead
from tests.handmade.users import MODES, user_table
from tests.policies.multispin.test_multispin_closed_forms_are_optimal import random_problem

LATE = CellSettings(users=8, report_rounds_old=1, report_error_db=3.0, deadline=0.6)


@pytest.fixture(scope="module")
def table() -> ChainTable:
    return user_table()


def playing(table: ChainTable, settings: CellSettings, rounds: int = 6) -> Cell:
    """Three cells after some rounds."""
    cell = Cell(table, settings, 3)
    cell.reset(np.random.default_rng(0))
    for turn in range(rounds):
        cell.step(cell.best_plan(np.random.default_rng(turn).integers(5, size=cell.shape)))
    return cell


def in_decibels(ratio: np.ndarray) -> np.ndarray:
    return np.asarray(10 * np.log10(ratio))


def test_a_tilt_is_in_decibels_and_none_leaves_the_report() -> None:
    reported = np.array([0.1, 1.0, 50.0, 0.0])
    assert np.array_equal(tilt(reported, np.zeros(4)), reported)
    up, down = (in_decibels(tilt(reported[:3], sign)) for sign in (1.0, -0.5))
    assert up == pytest.approx(in_decibels(reported[:3]) + MOST_TILT)
    assert down == pytest.approx(in_decibels(reported[:3]) - MOST_TILT / 2)


@pytest.mark.parametrize("mode", MODES)
def test_without_tilts_plans_are_those_of_the_beliefs(mode: str, table: ChainTable) -> None:
    cell = playing(table, MODES[mode])
    users = cell.shape[1]
    beliefs = np.random.default_rng(9).uniform(-1, 1, cell.shape)
    wanted = BeliefActions(users, cell.longest).plan(cell, beliefs)
    actions = np.concatenate([beliefs, np.zeros(cell.shape)], axis=-1)
    plan = TiltActions(users, cell.longest).plan(cell, actions)
    np.testing.assert_array_equal(plan.lengths, wanted.lengths)
    np.testing.assert_allclose(plan.shares, wanted.shares, rtol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_tilts_change_the_division_and_no_length(mode: str, table: ChainTable) -> None:
    cell = playing(table, MODES[mode])
    rng = np.random.default_rng(9)
    beliefs, tilts = rng.uniform(-1, 1, (2, *cell.shape))
    actions = np.concatenate([beliefs, tilts], axis=-1)
    wanted = BeliefActions(cell.shape[1], cell.longest).plan(cell, beliefs)
    plan = TiltActions(cell.shape[1], cell.longest).plan(cell, actions)
    np.testing.assert_array_equal(plan.lengths, wanted.lengths)
    cell.reported = tilt(cell.reported, np.where(cell.deciding, tilts, 0.0))
    np.testing.assert_allclose(plan.shares, cell.best_plan(wanted.lengths).shares, rtol=1e-9)


def test_the_band_goes_to_who_is_taken_for_weak(table: ChainTable) -> None:
    cell = playing(table, replace(MODES["synchronous"], users=4))
    lengths = np.full(cell.shape, 3)
    tilts = np.zeros(cell.shape)
    tilts[:, 0] = -0.5
    plain, tilted = cell.best_plan(lengths), cell.best_plan(lengths, tilt(cell.reported, tilts))
    assert (tilted.shares[:, 0] > plain.shares[:, 0]).all()
    assert (tilted.shares[:, 1:] < plain.shares[:, 1:]).all()
    np.testing.assert_allclose(tilted.shares.sum(-1), 1.0)


def test_alike_is_heterogeneous_at_the_mean_channel() -> None:
    problem = random_problem(np.random.default_rng(0), 6)
    there = np.array([True, True, False, True, True, True])
    problem = replace(problem, active=there)
    even = replace(problem, efficiency=problem.efficiency[there].mean())
    plan, wanted = alike_plan(problem), heterogeneous_plan(even)
    np.testing.assert_array_equal(plan.lengths, wanted.lengths)
    np.testing.assert_allclose(plan.shares, wanted.shares)
    assert plan.lengths[2] == 0 == plan.shares[2]


def test_who_doubts_late_reports_gains_by_it() -> None:
    cell = Cell(user_table(texts=30, length=60), LATE, 24)
    reached = {}
    for spec in ("heterogeneous@given", "alike@given"):
        seeds = [np.random.default_rng(index) for index in range(24)]
        reached[spec] = play_cells(spec, cell, seeds, 40).goodput
    assert reached["alike@given"] > 1.01 * reached["heterogeneous@given"]


def fitted(table: ChainTable, settings: CellSettings) -> tuple[LearnedScheduler, Cell]:
    """A network that has been told how channels differ from reports, and its cells."""
    torch.manual_seed(0)
    head = SchedulerHead(TILTS, table.longest, USER_FEATURES, CELL_FEATURES)
    network, cell = head.network(32), Cell(table, settings, 16)
    with torch.no_grad():
        network.outputs.weight.mul_(0.01)
        network.outputs.bias.zero_()
    fit_beliefs(network, cell, BeliefFit(40, 10, 16, 4e-3, dropout=0.0), 0)
    return LearnedScheduler(network, head), cell


def test_fitted_tilts_take_late_reports_back_to_the_mean(table: ChainTable) -> None:
    policy, cell = fitted(table, LATE)
    cell.reset(np.random.default_rng(5))
    before, after = [], []
    for _ in range(10):
        cell.step(cell.best_plan(np.zeros(cell.shape, int)))
        actions, _ = policy.predict(observe_cell(cell), deterministic=True)
        before.append(in_decibels(cell.reported))
        after.append(in_decibels(tilt(cell.reported, np.split(actions, 2, axis=-1)[1])))
    assert np.std(after) < 0.6 * np.std(before)
    truth = np.mean(in_decibels(cell.channel.snr))
    assert np.mean(after) == pytest.approx(truth, abs=3.0)


def test_fitted_tilts_leave_reports_that_are_true(table: ChainTable) -> None:
    policy, cell = fitted(table, replace(LATE, report_rounds_old=0, report_error_db=0.0))
    cell.reset(np.random.default_rng(5))
    actions, _ = policy.predict(observe_cell(cell), deterministic=True)
    assert np.abs(np.split(actions, 2, axis=-1)[1]).max() < 0.5 / MOST_TILT  # half a decibel
