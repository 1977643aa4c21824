"""Beliefs about acceptance come to the truth, or go wrong as told."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.policies.multispin.beliefs import (
    CountedAcceptance,
    GivenAcceptance,
    MistakenAcceptance,
    TaskMean,
    beta_posterior,
    geometric_acceptance,
    moving_average,
)

TRUTH = np.array([0.05, 0.3, 0.7, 0.9, 0.98])
EVERYBODY = np.ones(5, dtype=bool)
TASKS = np.array([0, 1, 0, 1, 0])
MEANS = [0.5, 0.8]


def play(rng: np.random.Generator, drafted: np.ndarray, truth: np.ndarray = TRUTH) -> np.ndarray:
    """Accepted tokens of rounds in the geometric model."""
    return np.minimum(rng.geometric(1 - truth) - 1, drafted)


@pytest.mark.parametrize("longest", [1, 4, 25])
def test_the_posterior_converges_whatever_is_drafted(longest: int) -> None:
    rng = np.random.default_rng(0)
    belief = beta_posterior(MEANS)
    belief.begin(EVERYBODY, TASKS)
    for _ in range(20000):
        drafted = rng.integers(0, longest + 1, 5)
        belief.update(drafted, play(rng, drafted))
    assert belief.estimate(TRUTH * 0) == pytest.approx(TRUTH, abs=0.015)


def test_the_posterior_is_that_of_bernoulli_trials() -> None:
    belief = beta_posterior([0.75], strength=4.0)  # Beta(3, 1)
    belief.begin(np.ones(3, dtype=bool), np.zeros(3, dtype=np.int64))
    assert belief.estimate(np.zeros(3)).tolist() == [0.75] * 3
    belief.update(np.array([5, 5, 0]), np.array([2, 5, 0]))  # 2 of 3 judged, 5 of 5, none
    assert belief.estimate(np.zeros(3)) == pytest.approx([5 / 7, 8 / 9, 3 / 4])


def test_a_moving_average_follows_a_change_and_is_not_biased() -> None:
    rng = np.random.default_rng(1)
    belief = moving_average(MEANS, memory=0.99)
    belief.begin(EVERYBODY, TASKS)
    drafted = np.full(5, 6)
    for truth in (TRUTH, TRUTH[::-1]):
        seen = []
        for turn in range(6000):
            belief.update(drafted, play(rng, drafted, truth))
            if turn > 1000:
                seen.append(belief.estimate(truth))
        assert np.mean(seen, axis=0) == pytest.approx(truth, abs=0.02)
        assert np.std(seen, axis=0).max() < 0.08


def test_new_prompts_start_anew_unless_the_past_is_kept() -> None:
    who = np.array([True, False, False, False, False])
    for keep in (False, True):
        belief = CountedAcceptance(MEANS, 2.0, keep=keep)
        belief.begin(EVERYBODY, TASKS)
        belief.update(np.full(5, 4), np.full(5, 4))
        before = belief.estimate(TRUTH)
        belief.begin(who, TASKS)
        after = belief.estimate(TRUTH)
        assert after[0] == (before[0] if keep else 0.5)
        assert np.array_equal(after[1:], before[1:])


def test_the_task_mean_is_looked_up_and_the_given_is_believed() -> None:
    mean, given = TaskMean(MEANS), GivenAcceptance()
    for belief in (mean, given):
        belief.begin(EVERYBODY, TASKS)
        belief.update(np.full(5, 4), np.zeros(5, dtype=np.int64))
    assert mean.estimate(TRUTH).tolist() == [0.5, 0.8, 0.5, 0.8, 0.5]
    assert given.estimate(TRUTH) is TRUTH


def test_mistakes_multiply_the_odds() -> None:
    high = MistakenAcceptance(GivenAcceptance(), 3.0).estimate(np.array([0.0, 0.5, 0.8, 1.0]))
    assert high == pytest.approx([0, 0.75, 12 / 13, 1])
    low = MistakenAcceptance(GivenAcceptance(), 1 / 3).estimate(high)
    assert low == pytest.approx([0, 0.5, 0.8, 1])


def test_a_task_is_measured_by_its_likeliest_acceptance() -> None:
    rng = np.random.default_rng(2)
    drafted = rng.integers(0, 9, 100_000)
    accepted = play(rng, drafted, np.full(100_000, 0.83))
    assert geometric_acceptance(drafted, accepted) == pytest.approx(0.83, abs=0.005)
    assert accepted.sum() / drafted.sum() < 0.7  # what the naive ratio would say
    with pytest.raises(ValueError):
        geometric_acceptance([0, 0], [0, 0])


def test_estimates_out_of_order_or_out_of_range_are_refused() -> None:
    for belief in (TaskMean(MEANS), beta_posterior(MEANS)):
        with pytest.raises(ValueError, match="begin"):
            belief.estimate(TRUTH)
    with pytest.raises(ValueError, match="begin"):
        beta_posterior(MEANS).update(np.ones(5, dtype=np.int64), np.ones(5, dtype=np.int64))
    for wrong in (lambda: TaskMean([1.2]), lambda: CountedAcceptance(MEANS, 0.0),
                  lambda: CountedAcceptance(MEANS, 1.0, memory=0.0),
                  lambda: MistakenAcceptance(GivenAcceptance(), 0.0)):  # fmt: skip
        with pytest.raises(ValueError):
            wrong()
