"""The radio between devices and server: gains, power, noise, what a share carries, who gets which.

Two papers, two noise models. Multi-SPIN (arXiv 2606.04581, eq. 8) has a fixed noise *power*, so a
user's spectral efficiency does not depend on its bandwidth and its rate is linear in it. Its
follow-up (arXiv 2608.29618, eq. 18) has a noise power *per hertz*: a narrower share carries less
noise, more bits per hertz, and rate is concave in bandwidth. `Band` keeps the two apart.

Notation: K = users; leading dimensions, where there are any, are environments. Powers are watts,
gains and SNRs are ratios (not decibels), rates are bits per second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from draftgym.policies.multispin.uplink import Floats, fastest_shares

INDEPENDENT = float("inf")
"""A Doppler frequency at which one round's fading says nothing about the next."""
LEAST_EFFICIENCY = 1e-9
"""Bits per second and hertz that a user is taken to have at least; keeps a dead channel finite."""
SHARING_STEPS = 12
"""Of the iteration where efficiency depends on the share; it contracts quickly."""


def from_db(decibels: ArrayLike) -> Floats:
    """The ratio that some decibels are."""
    return np.asarray(10.0 ** (np.asarray(decibels, float) / 10.0))


def dbm_to_watts(dbm: float) -> float:
    """Watts of a power in decibels over a milliwatt."""
    return float(from_db(dbm)) / 1000.0


@dataclass(frozen=True)
class Band:
    """The uplink band that users divide among them (FDMA).

    Attributes:
        hertz: Width of the whole band, B.
        noise_grows: Whether a user's noise power grows with its bandwidth. If so, an SNR is that
            over the *whole* band; if not, it is the same over any share.
    """

    hertz: float
    noise_grows: bool = False

    def __post_init__(self) -> None:
        if not self.hertz > 0:
            raise ValueError(f"a band must be wider than {self.hertz} Hz")

    def efficiency(self, snr: ArrayLike, share: ArrayLike) -> Floats:
        """Spectral efficiency `log2(1 + SNR)` in bits per second and hertz.

        Args:
            snr: Signal-to-noise ratios `[..., K]`; see `noise_grows`.
            share: Parts of the band in [0, 1], broadcast against `snr`. Only where noise grows with
                bandwidth does it matter; a share of 0 then has the efficiency 0, as it has no rate.

        Raises:
            ValueError: A negative share.
        """
        snr, share = np.asarray(snr, float), np.asarray(share, float)
        if (share < 0).any():
            raise ValueError("shares of the band must not be negative")
        if self.noise_grows:
            shape = np.broadcast_shapes(snr.shape, share.shape)
            snr = np.divide(snr, share, out=np.zeros(shape), where=share > 0)
        return np.asarray(np.log1p(snr) / np.log(2.0) + np.zeros(share.shape))

    def rate(self, snr: ArrayLike, share: ArrayLike) -> Floats:
        """Rate of each user in bits per second (2606.04581 eq. 8, 2608.29618 eq. 18).

        Args:
            snr: Signal-to-noise ratios `[..., K]`.
            share: Parts of the band, broadcast against `snr`.

        Raises:
            ValueError: A negative share.
        """
        return np.asarray(self.efficiency(snr, share) * np.asarray(share, float) * self.hertz)


def known_efficiency(band: Band, snr: Floats, share: Floats | float) -> Floats:
    """Spectral efficiency to reckon with, above 0 `[..., K]`; see `Band.efficiency`."""
    return np.maximum(band.efficiency(snr, np.maximum(share, 1e-12)), LEAST_EFFICIENCY)


def best_shares(band: Band, snr: Floats, work: Floats, bits: Floats) -> Floats:
    """Shares of the band by which the last user ends as early as possible `[..., K]`.

    Where a user's rate is linear in its share this is Multi-SPIN's Lemma 3
    (`draftgym.policies.multispin.uplink.fastest_shares`). Where noise grows with bandwidth the
    rate is concave, and still the optimum has all end together with the whole band in use. It is
    the fixed point of Lemma 3 at the efficiencies that the shares themselves give: a larger share
    lowers the efficiency by less than itself, so the iteration contracts.

    Args:
        band: The band.
        snr: Signal-to-noise ratios as far as they are known `[..., K]`.
        work: Seconds before each user sends `[..., K]`.
        bits: What each user sends `[..., K]`.

    Returns:
        Shares with sum 1; equal ones where nobody sends.
    """
    share = np.full(snr.shape, 1.0 / snr.shape[-1])
    for _ in range(SHARING_STEPS if band.noise_grows else 1):
        sending = bits / (known_efficiency(band, snr, share) * band.hertz)
        share = fastest_shares(work, sending)[0]
    return share


class GainLaw(Protocol):
    """How the mean power gain of a user's channel comes about."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Mean power gains of new users."""


@dataclass(frozen=True)
class UniformGain:
    """Mean power gains from a uniform law, without a geometry (2606.04581, Sec. VI-A)."""

    low: float
    high: float

    @property
    def mean(self) -> float:
        """Expected gain."""
        return (self.low + self.high) / 2

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Mean power gains of new users."""
        return rng.uniform(self.low, self.high, shape)


@dataclass(frozen=True)
class PathLoss:
    """Users at random distances; the gain falls with a power of the distance (2608.29618).

    Attributes:
        reference_db: Gain at one metre.
        exponent: Path-loss exponent.
        nearest, farthest: Distances in metres, drawn uniformly. (The paper says "independently
            drawn from the interval"; that the law is uniform in distance is our reading.)
    """

    reference_db: float
    exponent: float
    nearest: float
    farthest: float

    def gain(self, distance: ArrayLike) -> Floats:
        """Mean power gain at distances in metres."""
        return from_db(self.reference_db) * np.asarray(distance, float) ** -self.exponent

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Mean power gains of new users."""
        return self.gain(rng.uniform(self.nearest, self.farthest, shape))


@dataclass(frozen=True)
class Radio:
    """An uplink.

    Attributes:
        band: The band that users share.
        gains: Law of the users' mean power gains.
        power: Transmit power of a device, watts.
        noise: Noise at the server: watts over the whole band where noise grows with bandwidth,
            else watts over any share.
        doppler_hz: Maximal Doppler frequency: 0 for a channel that stands still, `INDEPENDENT`
            (both papers) for one that is drawn anew each round. A device that moves at v m/s has
            v * carrier frequency / speed of light.
    """

    band: Band
    gains: GainLaw
    power: float
    noise: float
    doppler_hz: float = INDEPENDENT

    def snr(self, gain: ArrayLike) -> Floats:
        """Signal-to-noise ratio (as `Band` wants it) of power gains."""
        return np.asarray(self.power * np.asarray(gain, float) / self.noise)


MULTISPIN_NOISE = 1e-10
"""Noise power, watts (2606.04581, Sec. VI-A)."""
MULTISPIN_GAINS = UniformGain(0.2, 0.5)
"""Mean gains of 2606.04581, Sec. VI-A."""


def multispin_radio(mean_snr_db: float, hertz: float = 10e6) -> Radio:
    """The uplink of Multi-SPIN (2606.04581, Sec. VI-A) at a mean SNR of our choice.

    Band (10 MHz unless a figure varies it), gains, Rayleigh fading that is independent from round
    to round, and noise power are the paper's. It does not disclose the transmit power, and with any
    ordinary one (0.1 W: 85 dB) its noise would make communication free, against its own Fig. 7. So
    the power is a *guess*, calibrated to the goodput that the paper states.

    Args:
        mean_snr_db: SNR at the mean gain.
        hertz: Width of the band.
    """
    power = float(from_db(mean_snr_db)) * MULTISPIN_NOISE / MULTISPIN_GAINS.mean
    return Radio(Band(hertz), MULTISPIN_GAINS, power, MULTISPIN_NOISE)


def mode_selection_radio(power_dbm: float = 10.0, hertz: float = 10e6) -> Radio:
    """The uplink of "Uplink or Downlink?" (2608.29618, Sec. VI-A3), every number the paper's.

    Its downlink (-167 dBm/Hz at the devices, a shared budget, 30 dBm for reference) is not modelled
    here.

    Args:
        power_dbm: Power of a device: 10 dBm in Figs. 7 and 8; 15 dBm is the reference from which
            the total power of Figs. 9 to 11 is made up.
        hertz: Width of the band.
    """
    noise = dbm_to_watts(-169.0) * hertz  # -169 dBm/Hz at the server
    gains = PathLoss(-30.0, 3.5, 100.0, 500.0)
    return Radio(Band(hertz, noise_grows=True), gains, dbm_to_watts(power_dbm), noise)
