"""Plans for any belief, beliefs by likelihood, and what a cell tells without playing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from draftgym.agents.common.settings import BeliefFit
from draftgym.agents.scheduler.belief_fitting import Evidence, fit_beliefs, fitting_loss
from draftgym.agents.scheduler.bounded_reward import BoundedReward
from draftgym.agents.scheduler.totals import play_cells
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.env import SchedulerBeliefEnv
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES, observe_cell
from draftgym.envs.scheduler.planners import LearnedPlanner, OraclePlanner, RulePlanner
from draftgym.envs.scheduler.vector import SchedulerBeliefVectorEnv
from draftgym.policies.multispin.curves import belief_plan, curve_plan, geometric_chances
from draftgym.policies.multispin.heterogeneous import heterogeneous_plan
from draftgym.policies.multispin.problem import Plan, RoundProblem, VerificationCost
from draftgym.policies.schedulers.learned import BELIEFS, LearnedScheduler, SchedulerHead
from draftgym.policies.schedulers.rules import EntropyExit
from tests.handmade.traces import handmade_traces
from tests.handmade.users import MODES, user_table


@pytest.fixture(scope="module")
def table() -> ChainTable:
    return user_table()


def some_problem(users: int, seed: int, rounds: int = 40, shortest: int = 0) -> RoundProblem:
    """Rounds of users who are far apart; some draft in no time."""
    rng = np.random.default_rng(seed)
    shape = rounds, users
    return RoundProblem(
        draft_seconds=rng.uniform(0.015, 0.03, shape) * (rng.random(shape) < 0.7),
        payload_bits=31744.0,
        efficiency=rng.exponential(5, shape) + 0.05,
        acceptance=rng.beta(2, 2, shape),
        bandwidth=1e7,
        verification=VerificationCost(0.02268, 0.01272, rng.choice([0.0, 0.002])),
        min_length=shortest,
        max_length=5,
    )


@pytest.mark.parametrize("users", [1, 2, 3])
@pytest.mark.parametrize("shortest", [0, 1])
def test_plans_for_any_chances_are_close_to_brute_force(users: int, shortest: int) -> None:
    problem = some_problem(users, users, shortest=shortest)
    rng = np.random.default_rng(0)
    chances = np.sort(rng.random((40, users, 5)))[..., ::-1]  # no acceptance explains these
    tokens = 1 + np.concatenate([np.zeros((40, users, 1)), chances.cumsum(-1)], -1)

    def goodput(lengths: np.ndarray) -> np.ndarray:
        committed = np.take_along_axis(tokens, lengths[..., None], -1)[..., 0].sum(-1)
        access = problem.fastest_shares(lengths)[1]
        return np.asarray(committed / (access + problem.verification_seconds(lengths)))

    every = product(range(shortest, 6), repeat=users)
    best = np.max([goodput(np.broadcast_to(np.array(one), (40, users))) for one in every], axis=0)
    plan = curve_plan(problem, chances)
    assert plan.lengths.min() >= shortest and plan.lengths.max() <= 5
    np.testing.assert_allclose(plan.shares.sum(-1), 1.0)
    ratio = goodput(plan.lengths) / best
    assert ratio.mean() > 0.99 and ratio.min() > 0.9


@pytest.mark.parametrize("users", [4, 16])
def test_with_one_acceptance_per_user_they_are_the_closed_forms(users: int) -> None:
    problem = some_problem(users, users)
    wanted = problem.goodput(heterogeneous_plan(problem))
    reached = problem.goodput(curve_plan(problem, geometric_chances(problem.acceptance, 5)))
    assert (reached / wanted).mean() > 0.995


def test_absent_users_draft_nothing() -> None:
    problem = some_problem(4, 0)
    there = np.array([True, False, True, True])
    plan = curve_plan(replace(problem, active=there), np.ones((40, 4, 5)))
    assert not plan.lengths[:, 1].any() and plan.lengths[:, 0].any()


def network_of(seed: int = 0) -> tuple[LearnedScheduler, SchedulerHead]:
    torch.manual_seed(seed)
    head = SchedulerHead(BELIEFS, 6, USER_FEATURES, CELL_FEATURES)
    return LearnedScheduler(head.network(16), head), head


def test_fitted_beliefs_are_what_the_texts_accept() -> None:
    """Two drafters whose acceptance is a coin with a known bias, the same everywhere."""
    rng = np.random.default_rng(0)
    traces = handmade_traces(
        {
            "small:6": lambda signals, hidden: rng.geometric(0.7, len(signals)),
            "eagle3:6": lambda signals, hidden: rng.geometric(0.2, len(signals)),
        },
        texts=60,
        length=120,
    )
    cell = Cell(ChainTable(traces), CellSettings(users=4), 16)
    network = network_of()[1].network(32)
    losses = fit_beliefs(network, cell, BeliefFit(rounds=60, epochs=12, batch_size=16), 0)
    assert losses[-1] < losses[0]
    cell.reset(np.random.default_rng(0))
    network.eval()
    policy = LearnedScheduler(network, network_of()[1])
    told: dict[str, list[float]] = {"small": [], "eagle3": []}
    names = np.array([arm.drafter for arm in cell.table.arms])[cell.users.arm]
    for _ in range(20):
        beliefs = (policy.predict(observe_cell(cell), deterministic=True)[0] + 1) / 2
        for name, each in told.items():
            each.append(float(beliefs[names == name].mean()))
        cell.step(cell.best_plan(np.full(cell.shape, 2)))
    assert np.mean(told["small"]) == pytest.approx(0.3, abs=0.05)
    assert np.mean(told["eagle3"]) == pytest.approx(0.8, abs=0.05)


def test_the_likelihood_is_that_of_accepted_and_rejected_tokens(table: ChainTable) -> None:
    network = network_of()[1].network(16)
    seen = {"users": torch.rand(3, 2, len(USER_FEATURES)), "cell": torch.rand(3, 4)}
    accepted, rejected = torch.tensor([[2.0, 0], [1, 6], [0, 3]]), torch.ones(3, 2)
    rejected[1, 1] = 0
    mean = network(seen["users"], seen["cell"])[..., 0]
    chance = (torch.tanh(mean) + 1) / 2
    wanted = -(accepted * chance.log() + rejected * (1 - chance).log()).mean()
    evidence = Evidence(seen["users"], seen["cell"], accepted, rejected, torch.zeros(3, 2))
    found = fitting_loss(network, evidence)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_trained_scheduler_plans_as_its_environment_does(table: ChainTable) -> None:
    policy, _ = network_of()
    env = SchedulerBeliefEnv(table, MODES["synchronous"])
    observation, _ = env.reset(seed=0)
    actions, _ = policy.predict(observation, deterministic=True)
    wanted = policy.lengths(observation, env.cell.problem(), deterministic=True)
    planner = LearnedPlanner(policy, env.cell)
    np.testing.assert_array_equal(planner.plan().lengths, wanted)
    played = env.actions.plan(env.cell, actions[None])
    np.testing.assert_array_equal(played.lengths, wanted)
    assert belief_plan(env.cell.problem(), np.full((1, 3), -1.0), 6).lengths.max() == 0
    with pytest.raises(ValueError, match="problem"):
        policy.lengths(observation)


@pytest.mark.parametrize("mode", MODES)
def test_a_preview_is_what_playing_brings_and_changes_nothing(mode: str, table: ChainTable) -> None:
    cells = [Cell(table, MODES[mode], 3) for _ in range(2)]
    for cell in cells:
        cell.reset(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    for _ in range(30):
        lengths, other = rng.integers(7, size=(2, 3, 3))
        plan = cells[0].best_plan(lengths)
        cells[0].preview(cells[0].best_plan(other))
        committed, seconds = cells[0].preview(plan)
        played, untouched = cells[0].step(plan), cells[1].step(cells[1].best_plan(lengths))
        np.testing.assert_array_equal(committed, played.committed)
        np.testing.assert_allclose(seconds, played.time.total)
        np.testing.assert_array_equal(played.committed, untouched.committed)
        np.testing.assert_allclose(played.time.total, untouched.time.total)


def test_the_reference_takes_its_own_reward_off(table: ChainTable) -> None:
    cells = SchedulerBeliefVectorEnv(4, table, MODES["synchronous"], 2.0)
    env = BoundedReward(cells)
    env.reset()
    env.reference = LearnedPlanner(network_of()[0], cells.cell)
    for _ in range(10):
        same, _ = network_of()[0].predict(observe_cell(cells.cell), deterministic=True)
        _, rewards, _, _ = env.step(same)
        np.testing.assert_allclose(rewards, 0.0, atol=1e-6)
    _, rewards, _, _ = env.step(np.ones((4, 3), np.float32))
    assert np.abs(rewards).max() > 1e-5


def test_an_oracle_gets_more_than_who_must_guess(table: ChainTable) -> None:
    cell = Cell(table, CellSettings(users=6), 8)
    seeds = [np.random.default_rng(index) for index in range(8)]
    oracle = play_cells(OraclePlanner, cell, seeds, 60)
    assert oracle.accepted.sum() == oracle.drafted.sum(), "it drafts nothing in vain"
    for spec in ("heterogeneous@given", "heterogeneous@beta", "homogeneous@given"):
        seeds = [np.random.default_rng(index) for index in range(8)]
        other = play_cells(lambda one, spec=spec: RulePlanner(spec, one), cell, seeds, 60)
        assert oracle.tokens.sum() / oracle.seconds.sum() > other.tokens.sum() / other.seconds.sum()


def test_cells_begin_with_as_many_users_as_they_are_told(table: ChainTable) -> None:
    cell = Cell(table, CellSettings(users=6, fewest=2), 60)
    cell.reset(np.random.default_rng(0))
    present = cell.users.active.sum(-1)
    assert set(present.tolist()) == {2, 3, 4, 5, 6}
    empty = ~cell.users.active
    for _ in range(20):
        after = cell.step(cell.best_plan(np.full(cell.shape, 2)))
    assert not after.committed[empty].any()
    np.testing.assert_array_equal(cell.users.active.sum(-1), present)


def test_places_that_nobody_takes_change_no_observation(table: ChainTable) -> None:
    narrow = Cell(table, CellSettings(users=3), 1)
    wide = Cell(table, CellSettings(users=5, fewest=3), 200)
    narrow.reset(np.random.default_rng(0))
    wide.reset(np.random.default_rng(0))
    row = int(np.flatnonzero(wide.users.active.sum(-1) == 3)[0])
    np.testing.assert_array_equal(observe_cell(wide)["cell"][row], observe_cell(narrow)["cell"][0])


def test_a_reported_confidence_costs_a_token_and_lookup_tells_for_free() -> None:
    traces = user_table(texts=30)
    cell = Cell(traces, CellSettings(users=6), 4)
    asked = Cell(traces, CellSettings(users=6, confidence=True), 4)
    for one in (cell, asked):
        one.reset(np.random.default_rng(0))
    nothing = np.zeros(cell.shape, int)
    slow = cell.users.token_seconds
    without, told = (one.step(one.best_plan(nothing)) for one in (cell, asked))
    np.testing.assert_allclose(without.time.draft, 0.0)
    np.testing.assert_allclose(told.time.draft, slow.max(-1))
    column = USER_FEATURES.index("confidence")
    free = cell.users.token_seconds == 0
    seen = observe_cell(cell)["users"][..., column]
    assert not seen[~free].any()
    told_for_free = cell.table.confidence(cell.users.arm, cell.users.row, free)
    np.testing.assert_array_equal(seen, told_for_free)


def test_an_early_exit_costs_the_token_that_told_it() -> None:
    base = user_table()
    base.logprobs[:] = -5.0  # never sure
    cell = Cell(base, replace(MODES["synchronous"], users=4), 3)
    cell.reset(np.random.default_rng(1))
    planner = RulePlanner("gelato@mean", cell, 1)
    plan = planner.plan()
    assert plan.unsent is not None and plan.unsent.max() == 1
    played = cell.preview(plan)
    sent_alone = cell.preview(Plan(plan.lengths, plan.shares))
    slow = ((plan.unsent > 0) & (cell.users.token_seconds > 0)).any(-1)
    assert (played[1] > sent_alone[1])[slow].all() and slow.any()
    np.testing.assert_array_equal(played[0], sent_alone[0])
    base.logprobs[:] = 0.0  # always sure: the budget is drafted and sent
    budget = RulePlanner("gelato@mean", cell, 1)
    assert isinstance(budget.scheduler.early_exit, EntropyExit)
    assert not np.any(budget.plan().unsent)
