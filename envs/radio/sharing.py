"""Who gets how much of the band: the optimal rule for any radio, and shares that an agent sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from draftgym.envs.radio.radio import Band
from draftgym.policies.multispin.uplink import Floats, fastest_shares

LEAST_EFFICIENCY = 1e-9
"""Bits per second and hertz that a user is taken to have at least; keeps a dead channel finite."""
STEPS = 12
"""Of the iteration where efficiency depends on the share; it contracts quickly."""


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
    for _ in range(STEPS if band.noise_grows else 1):
        sending = bits / (known_efficiency(band, snr, share) * band.hertz)
        share = fastest_shares(work, sending)[0]
    return share


def onto_simplex(weights: Floats, sending: NDArray[np.bool_]) -> Floats:
    """The nearest shares with sum 1 of those who send `[..., K]`; 0 for the others.

    Euclidean projection: what exceeds is taken from everybody alike, and who would fall below 0
    gets nothing (Held, Wolfe and Crowder 1974).

    Args:
        weights: Any finite numbers `[..., K]`.
        sending: Who sends.
    """
    least = weights.min(axis=-1, keepdims=True, initial=0.0) - 2.0  # below every threshold
    masked = np.where(sending, weights, least)
    falling = -np.sort(-masked, axis=-1)
    count = np.arange(1, weights.shape[-1] + 1)
    excess = (falling.cumsum(axis=-1) - 1.0) / count
    senders = sending.sum(axis=-1, keepdims=True)
    inside = (falling > excess) & (count <= senders)
    last = np.maximum(inside.sum(axis=-1, keepdims=True) - 1, 0)
    shares = np.maximum(masked - np.take_along_axis(excess, last, axis=-1), 0.0)
    return np.where(sending, shares, 0.0)
