"""Baselines are what they are called, and the schedulers by name use what they say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.policies.multispin.baselines import (
    alone_plan,
    fixed_plan,
    homogeneous_plan,
    selfish_plan,
    uniform_bandwidth_plan,
)
from draftgym.policies.multispin.beliefs import TaskMean
from draftgym.policies.multispin.heterogeneous import heterogeneous_plan
from draftgym.policies.multispin.problem import Plan, RoundProblem, VerificationCost
from draftgym.policies.schedulers.rules import BELIEFS, RULES, EntropyExit, make_scheduler
from tests.policies.multispin.test_multispin_closed_forms_are_optimal import LLAMA, random_problem

MEANS = [0.7, 0.9]


@pytest.mark.parametrize("token_cost", [0.0, 0.004, 0.03])
@pytest.mark.parametrize("payload", [31744.0, 15.0])
def test_uniform_bandwidth_equals_brute_force(token_cost: float, payload: float) -> None:
    rng = np.random.default_rng(0)
    for users in (1, 2, 3, 4) * 5:
        problem = random_problem(rng, users, payload, token_cost)
        plan = uniform_bandwidth_plan(problem)
        every = np.array(list(product(range(7), repeat=users)))
        candidates = problem.with_candidates()
        best = candidates.goodput(Plan(every, problem.equal_shares()[None])).max()
        assert problem.goodput(plan) == pytest.approx(best, rel=1e-9)


def test_heterogeneous_is_never_worse_than_any_baseline() -> None:
    rng = np.random.default_rng(1)
    for token_cost in (0.0, 0.002):
        for _ in range(15):
            problem = random_problem(rng, 10, token_cost=token_cost, longest=25)
            best = problem.goodput(heterogeneous_plan(problem))
            for rule in (fixed_plan, uniform_bandwidth_plan, homogeneous_plan, selfish_plan):
                assert problem.goodput(rule(problem)) <= best * (1 + 1e-9)


def test_fixed_is_eight_tokens_and_equal_shares() -> None:
    active = np.array([True, True, False, True])
    problem = RoundProblem(np.full(4, 0.02), 31744.0, 5.0, 0.8, 4e6, LLAMA, active=active)
    plan = fixed_plan(problem)
    assert plan.lengths.tolist() == [8, 8, 0, 8]
    assert plan.shares == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    seconds = 8 * (0.02 + 31744 / (4e6 / 3 * 5)) + 0.02268 + 3 * 0.01272
    assert problem.seconds(plan) == pytest.approx(seconds)


def test_p2p_serves_users_in_turn_each_at_its_best() -> None:
    problem = random_problem(np.random.default_rng(2), 3, longest=20)
    plan = alone_plan(problem)
    tokens = seconds = 0.0
    for user in range(3):
        alone = RoundProblem(
            problem.draft_seconds[[user]], 31744.0, problem.efficiency[[user]],
            problem.acceptance[[user]], problem.bandwidth, problem.verification, max_length=20,
        )  # fmt: skip
        every = np.arange(21)
        goodputs = alone.with_candidates().goodput_of_lengths(every[:, None])
        assert plan.lengths[user] == goodputs.argmax()
        mine = Plan(plan.lengths[[user]], np.ones(1))
        assert alone.goodput(mine) == pytest.approx(goodputs.max())
        tokens += alone.tokens(mine.lengths)
        seconds += alone.seconds(mine)
    assert problem.goodput(plan) == pytest.approx(tokens / seconds)


def test_the_papers_setting_ranks_as_in_its_figures() -> None:
    """Calibrated, as the paper gives neither: 22 ms a drafted token and a mean of 17.5 dB.

    Figure 6: about 145 tokens/s, 4.6 times P2P. Figure 7: more to gain where the band is narrow.
    """
    rng = np.random.default_rng(3)
    gains, shapes = np.hypot(*rng.normal(size=(2, 40, 20))) ** 2 / 2, (40, 20)
    problem = {
        "draft_seconds": 0.022 * rng.uniform(0.85, 1.15, shapes),
        "payload_bits": 31744.0,
        "efficiency": np.log2(1 + 10**1.75 * gains),
        "acceptance": rng.choice([0.8582, 0.739, 0.7393, 0.7126], shapes),
        "verification": LLAMA,
        "min_length": 1,
    }
    mean = {}
    for band in (5e6, 1e7, 2e7):
        round_ = RoundProblem(bandwidth=band, **problem)  # type: ignore[arg-type]
        for rule in (fixed_plan, uniform_bandwidth_plan, homogeneous_plan, heterogeneous_plan):
            mean[rule, band] = round_.goodput(rule(round_)).mean()
        mean[alone_plan, band] = round_.goodput(alone_plan(round_)).mean()
    assert mean[heterogeneous_plan, 1e7] == pytest.approx(145, rel=0.07)
    assert mean[heterogeneous_plan, 1e7] / mean[alone_plan, 1e7] == pytest.approx(4.6, rel=0.25)
    ratio = [mean[heterogeneous_plan, b] / mean[fixed_plan, b] for b in (5e6, 1e7, 2e7)]
    assert ratio[0] > ratio[1] > ratio[2] > 1
    for band in (5e6, 1e7, 2e7):
        assert mean[homogeneous_plan, band] < mean[heterogeneous_plan, band]
        assert mean[uniform_bandwidth_plan, band] < mean[heterogeneous_plan, band]


def test_drafts_end_at_the_token_that_overflows_the_bucket() -> None:
    leave = EntropyExit(decay=0.5, patience=1.0)
    usual = 2.0
    accept = np.full(4, np.exp(-usual * 0.5))
    entropies = np.array(
        [
            [0.0, 0.0, 0.0, 0.0, 0.0],  # sure: the budget ends it
            [3.0, 2.9, 3.0, 0.0, 0.0],  # backlog 1, 1.9, 2.9 > 2
            [9.0, 0.0, 0.0, 0.0, 0.0],  # at once
            [4.0, 0.0, 4.0, 2.0, 2.5],  # 2, 0 (never below), 2, 2, 2.5 > 2
        ]
    )
    drafted, sent = leave.lengths(np.array([4, 5, 5, 5]), entropies, accept)
    assert drafted.tolist() == [4, 3, 1, 5] and sent.tolist() == [4, 2, 0, 4]
    none, sent = leave.lengths(np.zeros(4, dtype=np.int64), entropies, accept)
    assert not none.any() and not sent.any()
    assert EntropyExit().usual_entropy(0.9) == pytest.approx(0.301, abs=1e-3)
    with pytest.raises(ValueError):
        leave.lengths(np.full(4, 6), entropies, accept)
    with pytest.raises(ValueError):
        EntropyExit(decay=0.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("belief", BELIEFS)
def test_every_scheduler_plans_and_learns(rule: str, belief: str) -> None:
    rng = np.random.default_rng(4)
    scheduler = make_scheduler(f"{rule}@{belief}", MEANS)
    problem = random_problem(rng, 5)
    scheduler.begin(np.ones(5, dtype=bool), np.array([0, 1, 0, 1, 0]))
    for _ in range(3):
        plan = scheduler.plan(problem)
        assert plan.lengths.dtype == np.int64 and plan.lengths.max() <= problem.max_length
        assert plan.in_turn or plan.shares.sum() == pytest.approx(1)
        scheduler.update(plan.lengths, np.minimum(plan.lengths, 2))
    assert (scheduler.early_exit is not None) == (rule == "gelato")


def test_only_a_given_belief_reads_the_problems_acceptance() -> None:
    problem = random_problem(np.random.default_rng(5), 4)
    other = problem.with_acceptance(1 - problem.acceptance)
    for belief in ("mean", "beta", "average"):
        scheduler = make_scheduler(f"heterogeneous@{belief}", MEANS)
        scheduler.begin(np.ones(4, dtype=bool), np.array([0, 1, 1, 0]))
        assert np.array_equal(scheduler.plan(problem).lengths, scheduler.plan(other).lengths)
    given = make_scheduler("heterogeneous@given", MEANS)
    assert np.array_equal(given.plan(problem).lengths, heterogeneous_plan(problem).lengths)
    assert isinstance(make_scheduler("homogeneous@mean", MEANS).belief, TaskMean)


def test_a_batch_of_prices_is_iterated_for_each_group() -> None:
    rng = np.random.default_rng(6)
    cost = VerificationCost(0.03, 0.005, 0.01)
    draft, rate = rng.uniform(0.005, 0.05, (2, 6, 4))
    accept = rng.uniform(0.3, 0.99, (6, 4))
    batch = RoundProblem(draft, 15.0, rate * 100, accept, 2e6, cost)
    plan = uniform_bandwidth_plan(batch)
    for row in range(6):
        group = RoundProblem(draft[row], 15.0, rate[row] * 100, accept[row], 2e6, cost)
        assert np.array_equal(plan.lengths[row], uniform_bandwidth_plan(group).lengths)


@pytest.mark.parametrize("spec", ["heterogenous", "fixed@bta", "@beta", "", "fixed@"])
def test_unknown_schedulers_are_refused_with_a_remedy(spec: str) -> None:
    with pytest.raises(DraftgymError) as caught:
        make_scheduler(spec, MEANS)
    assert "choose from" in caught.value.remedy
