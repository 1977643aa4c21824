"""Rayleigh fading has the power and the memory that it says it has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftgym.envs.radio.channel import FadingChannel, draw, fade, jakes_correlation, rayleigh
from draftgym.envs.radio.radio import INDEPENDENT, multispin_radio


def j0_by_integration(x: np.ndarray, points: int = 4000) -> np.ndarray:
    """The mean of cos(x sin t) over half a turn; the trapezoid rule is exact to rounding here."""
    angles = (np.arange(points) + 0.5) * np.pi / points
    return np.cos(np.outer(x, np.sin(angles))).mean(1)


def test_the_correlation_is_clarkes_mean_over_directions() -> None:
    x = np.concatenate([np.linspace(0, 12, 500), np.linspace(12, 900, 200)])
    assert np.abs(jakes_correlation(1 / (2 * np.pi), x) - j0_by_integration(x)).max() < 1e-12
    assert abs(jakes_correlation(2.404825557695773, 1 / (2 * np.pi))) < 1e-12, "its first zero"


def test_correlation_by_hand() -> None:
    # 1 m/s at 3.5 GHz are 11.67 Hz; a hundredth of a second later x is .7335, J0 .8699.
    assert jakes_correlation(11.675, 0.01) == pytest.approx(0.8699, abs=1e-4)
    assert jakes_correlation(0.0, 5.0) == jakes_correlation(7.0, 0.0) == 1.0
    assert jakes_correlation(INDEPENDENT, [0.0, 1.0]).tolist() == [0, 0]
    assert jakes_correlation(1.0, np.zeros((3, 2))).shape == (3, 2)


def test_the_mean_power_is_the_mean_gain_and_its_law_exponential() -> None:
    channel = FadingChannel(multispin_radio(17.5), (400, 500))
    channel.reset(np.random.default_rng(0))
    power = channel.gain / channel.mean_gain
    for _ in range(2):
        assert power.mean() == pytest.approx(1.0, rel=0.01)
        assert power.var() == pytest.approx(1.0, rel=0.02)
        assert (power < 0.1).mean() == pytest.approx(1 - np.exp(-0.1), rel=0.02)
        channel.advance(np.random.default_rng(1), 0.4)
        power = channel.gain / channel.mean_gain
    assert channel.snr == pytest.approx(channel.radio.snr(channel.gain))
    assert channel.snr.mean() == pytest.approx(10**1.75, rel=0.01)


@pytest.mark.parametrize("phase", [0.0, 0.5, 1.5, 2.4048, 3.8317, 8.0])
def test_neighbouring_rounds_have_jakes_correlation(phase: float) -> None:
    rng = np.random.default_rng(0)
    rho = float(jakes_correlation(phase, 1 / (2 * np.pi)))
    first = rayleigh(rng, (200_000,))
    second = fade(first, rng, rho)
    third = fade(second, rng, rho)
    assert np.mean(second * first.conj()) == pytest.approx(rho, abs=0.01)
    assert np.corrcoef(np.abs(first) ** 2, np.abs(second) ** 2)[0, 1] == pytest.approx(
        rho**2, abs=0.015
    )
    assert np.mean(third * first.conj()) == pytest.approx(rho**2, abs=0.01), "a Markov chain"
    assert np.mean(np.abs(third) ** 2) == pytest.approx(1.0, rel=0.01)


def test_a_channels_memory_is_that_of_its_doppler_and_of_each_environments_time() -> None:
    channel = FadingChannel(replace(multispin_radio(17.5), doppler_hz=2.0), (3, 100_000))
    rng = np.random.default_rng(0)
    channel.reset(rng)
    before = channel.gain / channel.mean_gain
    seconds = np.array([0.0, 0.05, 0.2])
    channel.advance(rng, seconds)
    after = channel.gain / channel.mean_gain
    assert after[0] == pytest.approx(before[0]), "no time, no change"
    for row in (1, 2):
        expected = j0_by_integration(2 * np.pi * 2.0 * seconds[row : row + 1])[0] ** 2
        assert np.corrcoef(before[row], after[row])[0, 1] == pytest.approx(expected, abs=0.02)


def test_independent_rounds_forget_and_a_still_channel_stays() -> None:
    for doppler, expected in ((INDEPENDENT, 0.0), (0.0, 1.0)):
        channel = FadingChannel(replace(multispin_radio(17.5), doppler_hz=doppler), (50_000,))
        rng = np.random.default_rng(0)
        channel.reset(rng)
        before = channel.gain / channel.mean_gain
        channel.advance(rng, 0.3)
        after = channel.gain / channel.mean_gain
        assert np.corrcoef(before, after)[0, 1] == pytest.approx(expected, abs=0.02)


def test_generators_are_one_or_one_per_environment() -> None:
    two = [np.random.default_rng(seed) for seed in (1, 2)]
    with pytest.raises(ValueError, match="2 generators"):
        draw(two, (3, 4), lambda rng, shape: rng.normal(size=shape))
    with pytest.raises(ValueError, match="2 generators"):
        draw(two, (2,), lambda rng, shape: rng.normal(size=shape))
