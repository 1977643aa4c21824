"""Intervals of ratios: paired over prompts, and as wide as they say."""

from __future__ import annotations

import pytest
import torch

from draftgym.rollouts.report.statistics import Work, speed_ratio


def test_the_interval_is_paired() -> None:
    reference = [Work(100, seconds) for seconds in (1.0, 2.0, 4.0, 8.0, 16.0)]
    twice = [Work(one.tokens, one.seconds / 2) for one in reference]
    exact = speed_ratio(twice, reference)
    assert (exact.value, exact.low, exact.high) == pytest.approx((2, 2, 2)), "spread cancels out"
    mixed = [
        Work(one.tokens, one.seconds / factor)
        for one, factor in zip(reference, (1, 3, 1, 3, 1), strict=True)
    ]
    interval = speed_ratio(mixed, reference)
    assert interval.value == pytest.approx(500 / sum(w.seconds for w in mixed) * 31 / 500)
    assert 1 <= interval.low < interval.value < interval.high <= 3
    assert speed_ratio(mixed, reference) == interval, "the same seed, the same interval"
    with pytest.raises(ValueError, match="paired"):
        speed_ratio(mixed[1:], reference)


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    rng = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        noise = torch.rand(40, generator=rng)
        mine = [Work(100, 1 / (1 + value)) for value in noise.tolist()]
        interval = speed_ratio(mine, [Work(100, 1.0)] * 40)
        truth = 1 / torch.log(torch.tensor(2.0)).item()  # 1 over the mean of 1 / (1 + uniform)
        covered += interval.low <= truth <= interval.high
    assert 86 <= covered <= 100
