"""The inner rule and the model of a round: against scipy, and far from 1."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from draftgym.policies.multispin.problem import RoundProblem, VerificationCost, expected_tokens
from draftgym.policies.multispin.uplink import access_seconds, fastest_shares
from tests.policies.multispin.test_multispin_closed_forms_are_optimal import LLAMA, random_problem


def test_inner_rule_equals_a_general_optimiser() -> None:
    """Min phi subject to work + sending / share <= phi and shares summing to 1, by SLSQP."""
    rng = np.random.default_rng(8)
    for users in (1, 2, 3, 6) * 4:
        work, sending = rng.uniform(0, 1, users), rng.exponential(0.3, users)
        shares, seconds = fastest_shares(work, sending)
        assert shares.sum() == pytest.approx(1, abs=1e-12) and shares.min() >= 0
        assert access_seconds(work, sending, shares) == pytest.approx(seconds, rel=1e-10)
        assert work + sending / shares == pytest.approx(np.full(users, seconds), rel=1e-9)
        equal = np.full(users, 1 / users)
        solved = minimize(
            lambda x: x[-1],
            [*equal, access_seconds(work, sending, equal)],
            jac=lambda x: np.eye(len(x))[-1],
            bounds=[(1e-9, 1)] * users + [(0, None)],
            constraints=[
                {"type": "eq", "fun": lambda x: x[:-1].sum() - 1},
                {"type": "ineq", "fun": lambda x, w=work, n=sending: x[-1] - w - n / x[:-1]},
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        # Compared by the shares it found: it may give up within rounding of the optimum.
        theirs = access_seconds(work, sending, solved.x[:-1] / solved.x[:-1].sum())
        assert seconds <= theirs * (1 + 1e-12) and theirs == pytest.approx(seconds, rel=1e-6)


def test_inner_rule_holds_at_extremes() -> None:
    rng = np.random.default_rng(9)
    for scale in (1e-15, 1e-9, 1.0, 1e9, 1e15):
        work = rng.uniform(0, 1, (200, 7))
        sending = scale * 10 ** rng.uniform(-6, 6, (200, 7)) * (rng.random((200, 7)) < 0.8)
        shares, seconds = fastest_shares(work, sending)
        sends = sending.sum(axis=1) > 0
        assert shares.sum(axis=1) == pytest.approx(np.ones(200), abs=1e-12)
        assert np.all(shares[sends][sending[sends] == 0] == 0)
        assert access_seconds(work, sending, shares) == pytest.approx(seconds, rel=1e-9)
        assert np.all(seconds >= (work + sending).max(axis=1) * (1 - 1e-12))
    nobody, end = fastest_shares(np.array([0.2, 0.1]), np.zeros(2))
    assert nobody.tolist() == [0.5, 0.5] and end == 0.2


def test_latency_and_shares_grow_with_a_users_length() -> None:
    """Appendix C: phi and the user's own share; and phi falls with the band (Lemma 1)."""
    problem = random_problem(np.random.default_rng(10), 5, longest=40)
    lengths = np.full(5, 4)
    longer = lengths + np.arange(20)[:, None] * np.eye(5, dtype=np.int64)[2]
    shares, seconds = problem.with_candidates().fastest_shares(longer)
    assert np.all(np.diff(seconds) > 0) and np.all(np.diff(shares[:, 2]) > 0)
    one = [
        RoundProblem(0.02, 31744.0, [1.0, 5.0], 0.8, band, LLAMA).fastest_shares([1, 1])[1]
        for band in np.geomspace(1e4, 1e8, 30)
    ]
    assert np.all(np.diff(one) < 0)


def test_expected_tokens_are_a_sum_of_powers() -> None:
    for accept in (0.0, 1e-300, 0.3, 0.9, 1 - 1e-9, 1 - 1e-15, 1.0):
        for length in (0, 1, 7, 25):
            exact = sum(accept**power for power in range(length + 1))
            assert expected_tokens(accept, length) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize(
    "wrong",
    [
        {"acceptance": [0.5, 1.1]},
        {"bandwidth": 0.0},
        {"efficiency": [1.0, 0.0]},
        {"draft_seconds": [np.nan, 1.0]},
        {"min_length": 4, "max_length": 3},
        {"draft_seconds": [1.0, 1.0, 1.0]},
    ],
)
def test_impossible_problems_are_refused(wrong: dict[str, object]) -> None:
    fine: dict[str, object] = {
        "draft_seconds": [0.02, 0.02], "payload_bits": 1.0, "efficiency": [1.0, 2.0],
        "acceptance": 0.5, "bandwidth": 1e6, "verification": LLAMA,
    }  # fmt: skip
    RoundProblem(**fine)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        RoundProblem(**{**fine, **wrong})  # type: ignore[arg-type]
    for cost in ((-1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, np.inf)):
        with pytest.raises(ValueError):
            VerificationCost(*cost)
