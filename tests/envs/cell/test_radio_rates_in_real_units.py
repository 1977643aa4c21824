"""Rates, gains and presets of the radio, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.envs.radio.radio import (
    INDEPENDENT,
    Band,
    PathLoss,
    UniformGain,
    dbm_to_watts,
    from_db,
    mode_selection_radio,
    multispin_radio,
)


def test_decibels_are_ratios_and_dbm_are_watts() -> None:
    assert from_db([0, 10, -30]) == pytest.approx([1, 10, 1e-3])
    assert dbm_to_watts(30) == pytest.approx(1.0)
    assert dbm_to_watts(10) == pytest.approx(0.01)
    assert dbm_to_watts(-169) == pytest.approx(1.2589e-20, rel=1e-4)


def test_with_a_fixed_noise_power_the_rate_is_linear_in_bandwidth() -> None:
    band = Band(10e6)
    assert band.efficiency(15.0, 0.05) == band.efficiency(15.0, 1.0) == 4.0
    assert band.rate(15.0, 0.05) == pytest.approx(4 * 0.5e6)
    assert band.rate([15.0, 1.0], [0.5, 0.25]) == pytest.approx([20e6, 2.5e6])


def test_with_noise_per_hertz_a_narrow_share_is_cleaner() -> None:
    band = Band(10e6, noise_grows=True)
    assert band.efficiency(3.0, 1.0) == 2.0
    assert band.efficiency(3.0, 0.2) == pytest.approx(4.0)  # five times less noise: log2(1 + 15)
    assert band.rate(3.0, 0.2) == pytest.approx(4 * 2e6)
    rates = band.rate(3.0, np.linspace(0, 1, 50))
    assert (np.diff(rates) > 0).all() and (np.diff(rates, 2) < 0).all(), "concave"


@pytest.mark.parametrize("noise_grows", [False, True])
def test_no_share_has_no_rate_and_no_signal_neither(noise_grows: bool) -> None:
    band = Band(1e6, noise_grows)
    assert band.rate([5.0, 0.0, 0.0], [0.0, 0.5, 0.0]).tolist() == [0, 0, 0]
    assert band.rate(np.ones((3, 4)), 0.25).shape == (3, 4)
    assert band.efficiency(np.ones(2), np.full((5, 2), 0.5)).shape == (5, 2)


def test_impossible_bands_and_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Band(1e6).rate(1.0, [-0.1, 1.1])
    with pytest.raises(ValueError, match="wider"):
        Band(0.0)


def test_path_loss_by_hand() -> None:
    law = PathLoss(-30.0, 3.5, 100.0, 500.0)
    assert law.gain(1.0) == pytest.approx(1e-3)
    assert law.gain(100.0) == pytest.approx(1e-10)
    assert law.gain(500.0) == pytest.approx(3.5777e-13, rel=1e-4)
    gains = law.draw(np.random.default_rng(0), (10_000,))
    assert law.gain(500.0) <= gains.min() and gains.max() <= law.gain(100.0)


def test_uniform_gains_stay_in_their_interval() -> None:
    law = UniformGain(0.2, 0.5)
    gains = law.draw(np.random.default_rng(0), (50_000,))
    assert gains.min() >= 0.2 and gains.max() <= 0.5
    assert gains.mean() == pytest.approx(law.mean, rel=0.01) and law.mean == pytest.approx(0.35)


def test_the_radio_of_mode_selection_is_the_papers() -> None:
    radio = mode_selection_radio()
    assert radio.band == Band(10e6, noise_grows=True)
    assert radio.power == pytest.approx(0.01) and radio.noise == pytest.approx(1.2589e-13, rel=1e-4)
    assert radio.doppler_hz == INDEPENDENT
    # 100 m, a twentieth of the band: 1e-12 W over 6.2946e-15 W of noise.
    snr = radio.snr(1e-10)
    assert radio.band.efficiency(snr, 1 / 20) == pytest.approx(np.log2(1 + 158.87), rel=1e-4)
    assert radio.band.rate(snr, 1 / 20) == pytest.approx(3.660e6, rel=1e-3)
    # 500 m: 3.58e-15 W.
    far = radio.band.rate(radio.snr(3.5777e-13), 1 / 20)
    assert far == pytest.approx(0.5e6 * np.log2(1.56838), rel=1e-4)
    louder = mode_selection_radio(power_dbm=15.0, hertz=5e6)
    assert louder.snr(1.0) == pytest.approx(2 * 10**0.5 * radio.snr(1.0))


def test_the_radio_of_multispin_has_the_papers_noise_and_our_power() -> None:
    radio = multispin_radio(17.5)
    assert radio.band == Band(10e6) and radio.noise == 1e-10
    assert radio.gains == UniformGain(0.2, 0.5) and radio.doppler_hz == INDEPENDENT
    assert 10 * np.log10(radio.snr(0.35)) == pytest.approx(17.5)
    assert radio.power == pytest.approx(1.6067e-8, rel=1e-4)
    assert radio.band.efficiency(radio.snr(0.35), 0.05) == pytest.approx(5.8388, rel=1e-4)
    assert multispin_radio(14.0, 5e6).band.hertz == 5e6
