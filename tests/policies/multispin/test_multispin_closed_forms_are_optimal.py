"""Multi-SPIN's plans against brute force over all lengths, and its formulas against scipy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import differential_evolution
from scipy.special import lambertw

from draftgym.policies.multispin.baselines import common_acceptance_plan, homogeneous_plan
from draftgym.policies.multispin.heterogeneous import heterogeneous_plan, relaxed_lengths
from draftgym.policies.multispin.problem import (
    Plan,
    RoundProblem,
    VerificationCost,
    expected_tokens,
)

PAYLOADS = {"probabilities": 31744.0, "twenty times": 634880.0, "token ids": 15.0, "nothing": 0.0}
LLAMA = VerificationCost(0.02268, 0.01272)


def random_problem(
    rng: np.random.Generator,
    users: int,
    payload: float = 31744.0,
    token_cost: float = 0.0,
    shortest: int = 0,
    longest: int = 6,
) -> RoundProblem:
    """Devices, channels and acceptances far apart, some acceptance close to 0 and to 1."""
    return RoundProblem(
        draft_seconds=rng.choice([0.002, 0.02, 0.08], users) * rng.uniform(0.5, 1.5, users),
        payload_bits=payload,
        efficiency=rng.exponential(5, users) + 0.05,
        acceptance=rng.choice([0.0, 1.0, *rng.beta(4, 1.5, 10)], users),
        bandwidth=5e5 * users,
        verification=VerificationCost(rng.uniform(0.01, 0.1), rng.uniform(0, 0.02), token_cost),
        min_length=shortest,
        max_length=longest,
    )


def brute_force(problem: RoundProblem) -> float:
    """Highest goodput over every combination of whole lengths."""
    users = problem.draft_seconds.shape[-1]
    every = product(range(problem.min_length, problem.max_length + 1), repeat=users)
    return float(problem.with_candidates().goodput_of_lengths(np.array(list(every))).max())


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("token_cost", [0.0, 0.004])
@pytest.mark.parametrize("shortest", [0, 1])
def test_heterogeneous_lengths_equal_brute_force(
    payload: float, token_cost: float, shortest: int
) -> None:
    rng = np.random.default_rng(0)
    for users in (1, 2, 3, 4) * 6:
        problem = random_problem(rng, users, payload, token_cost, shortest)
        plan = heterogeneous_plan(problem)
        assert plan.lengths.min() >= shortest and plan.lengths.max() <= 6
        assert problem.goodput(plan) == pytest.approx(brute_force(problem), rel=1e-6)


def test_heterogeneous_is_never_worse_than_homogeneous_and_equal_among_equals() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        problem = random_problem(rng, 12, longest=25)
        gain = problem.goodput(heterogeneous_plan(problem)) / problem.goodput(
            homogeneous_plan(problem)
        )
        assert gain >= 1 - 1e-12
    equal = RoundProblem(np.full(6, 0.02), 31744.0, 5.0, 0.8, 3e6, LLAMA)
    lengths = heterogeneous_plan(equal).lengths
    assert lengths.max() - lengths.min() <= 1


@pytest.mark.parametrize("token_cost", [0.0, 0.004])
def test_relaxed_lengths_equal_a_general_optimiser(token_cost: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(8):
        problem = random_problem(rng, 3, token_cost=token_cost, longest=12)
        found = problem.goodput_of_lengths(relaxed_lengths(problem))
        searched = differential_evolution(
            lambda x, p=problem: -p.with_candidates().goodput_of_lengths(x.T),
            bounds=[(0, 12)] * 3,
            rng=0,
            vectorized=True,
            updating="deferred",
            polish=False,
            tol=1e-8,
        )
        assert found >= -searched.fun * (1 - 1e-6)


def test_relaxed_lengths_are_a_bound_for_whole_ones() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        problem = random_problem(rng, 3)
        bound = problem.goodput_of_lengths(relaxed_lengths(problem))
        assert brute_force(problem) <= bound * (1 + 1e-6)


def test_proposition_1_makes_the_lagrangian_flat() -> None:
    """At the relaxed optimum, another token is worth the same band for every user."""
    rng = np.random.default_rng(5)
    problem = RoundProblem(
        rng.uniform(0.01, 0.03, 6), 31744.0, rng.uniform(2, 8, 6), rng.uniform(0.6, 0.95, 6),
        4e6, LLAMA,
    )  # fmt: skip
    lengths = relaxed_lengths(problem)
    assert lengths.min() > 0 and lengths.max() < problem.max_length
    phi = problem.fastest_shares(lengths)[1]
    decay = -np.log(problem.acceptance)
    gain = decay * problem.acceptance ** (lengths + 1) / (1 - problem.acceptance)
    spare = phi - lengths * problem.draft_seconds
    multiplier = gain * spare**2 / (problem.sending_seconds * phi)
    assert multiplier == pytest.approx(np.full(6, multiplier.mean()), rel=1e-3)
    # Equation 37 as the paper writes it, where float64 still holds it.
    inner = problem.acceptance ** (-phi / (2 * problem.draft_seconds)) / (2 * problem.draft_seconds)
    root = multiplier * problem.sending_seconds * phi * decay * (1 - problem.acceptance)
    bracket = lambertw(inner * np.sqrt(root / problem.acceptance)).real
    paper = phi / problem.draft_seconds - 2 / decay * bracket
    assert lengths == pytest.approx(paper, rel=1e-6)


def test_common_acceptance_is_theorem_1() -> None:
    """Equation 24 and the better of its neighbours (equation 23), whatever the users are."""
    rng = np.random.default_rng(6)
    for token_cost in (0.0, 0.003) * 100:
        problem = random_problem(rng, 8, token_cost=token_cost, shortest=1, longest=60)
        accept = problem.acceptance.mean()
        theta = problem.fastest_shares(np.ones(8))[1] + 8 * token_cost
        seconds = problem.verification_seconds(np.zeros(8))
        branch = lambertw(-(accept ** (seconds / theta - 1)) / np.e, -1).real
        real = -np.log(-branch) / np.log(accept) - 1 if seconds > theta else 0
        near = np.clip([np.floor(real), np.ceil(real)], 1, 60)
        goodput = expected_tokens(accept, near) / (near * theta + seconds)
        found = common_acceptance_plan(problem).lengths
        assert found.tolist() == [near[goodput.argmax()]] * 8
        alike = problem.with_acceptance(np.full(8, accept))
        assert np.array_equal(homogeneous_plan(alike).lengths, found)


def test_homogeneous_compensates_and_heterogeneous_rewards() -> None:
    """Lemma 1 gives band to weak devices and channels, Proposition 1 to who accepts (Remark 2)."""
    weak = RoundProblem([0.02, 0.03, 0.02], 31744.0, [5, 5, 2.5], 0.8, 2e6, LLAMA, max_length=25)
    shares = homogeneous_plan(weak).shares
    assert shares[1] > shares[0] and shares[2] > shares[0]
    alike = RoundProblem(np.full(4, 0.02), 31744.0, 5.0, [0.6, 0.75, 0.85, 0.95], 2e6, LLAMA)
    assert np.ptp(homogeneous_plan(alike).shares) < 1e-12
    rewarded, _ = alike.fastest_shares(relaxed_lengths(alike))
    assert np.all(np.diff(rewarded) > 0)
    assert np.all(np.diff(heterogeneous_plan(alike).shares) >= 0)


@pytest.mark.parametrize("rule", [homogeneous_plan, common_acceptance_plan, heterogeneous_plan])
def test_plans_follow_users_whatever_their_order(rule) -> None:  # noqa: ANN001
    rng = np.random.default_rng(11)
    problem = RoundProblem(
        rng.uniform(0.01, 0.03, 9), 31744.0, rng.uniform(1, 8, 9), rng.uniform(0.5, 0.95, 9),
        4e6, LLAMA,
    )  # fmt: skip
    plan = rule(problem)
    for order in (rng.permutation(9) for _ in range(5)):
        moved = RoundProblem(
            problem.draft_seconds[order], 31744.0, problem.efficiency[order],
            problem.acceptance[order], 4e6, LLAMA,
        )  # fmt: skip
        other = rule(moved)
        assert np.array_equal(other.lengths, plan.lengths[order])
        assert other.shares == pytest.approx(plan.shares[order], rel=1e-9)


@pytest.mark.parametrize("rule", [homogeneous_plan, common_acceptance_plan, heterogeneous_plan])
def test_a_batch_is_planned_like_its_groups(rule) -> None:  # noqa: ANN001
    rng = np.random.default_rng(12)
    draft, rate, accept = rng.uniform(0.005, 0.05, (3, 2, 3, 5))
    active = rng.random((2, 3, 5)) < 0.7
    active[..., 0] = True
    cost = VerificationCost(0.03, 0.01, 0.002)
    batch = RoundProblem(draft, 31744.0, rate * 100, 1 - accept * 10, 3e6, cost, active=active)
    plan = rule(batch)
    assert plan.lengths.shape == plan.shares.shape == (2, 3, 5)
    for place in np.ndindex(2, 3):
        here = active[place]
        group = RoundProblem(
            draft[place][here], 31744.0, rate[place][here] * 100, 1 - accept[place][here] * 10,
            3e6, cost,
        )  # fmt: skip
        alone = rule(group)
        assert np.array_equal(plan.lengths[place][here], alone.lengths)
        assert not plan.lengths[place][~here].any()
        goodput = batch.goodput(Plan(plan.lengths, plan.shares))[place]
        assert goodput == pytest.approx(group.goodput(alone), rel=1e-9)


@pytest.mark.parametrize("accept", [0.0, 1e-12, 0.5, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("payload", [0.0, 1e-6, 1e12])
@pytest.mark.parametrize("draft", [0.0, 1e-9, 1e3])
def test_extremes_give_whole_plans(accept: float, payload: float, draft: float) -> None:
    for shortest in (0, 1):
        problem = RoundProblem(
            [draft, 0.02], payload, [5.0, 1e-6], [accept, 0.8], 1e6,
            VerificationCost(0.02, 0.01, 1e-4), min_length=shortest, max_length=8,
        )  # fmt: skip
        plan = heterogeneous_plan(problem)
        assert np.isfinite(plan.shares).all()
        assert problem.goodput(plan) == pytest.approx(brute_force(problem), rel=1e-6)
        common_acceptance_plan(problem), homogeneous_plan(problem)
