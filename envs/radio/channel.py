"""Channels that remember: fading from one round to the next, and what a scheduler sees of it.

A channel coefficient h is complex Gaussian (Rayleigh fading: |h|^2 is exponential). When a device
moves among scatterers all around it, h at two moments T apart has the correlation J0(2 pi f T),
where f is the maximal Doppler frequency (Clarke and Jakes). A Gauss-Markov step has exactly that
correlation between a round and the next:

    h' = rho h + sqrt(1 - rho^2) w,    rho = J0(2 pi f T),    w ~ CN(0, 1).

Over n equal rounds it gives rho^n, where Jakes' spectrum has J0(2 pi f n T): neighbours are right,
the oscillating tail is not. That is the usual price for a state that one number per user holds.
Both Multi-SPIN papers draw every round anew; memory is our addition.

One number of a channel matters to a cell, the signal-to-noise ratio. `FadingChannel` draws it from
a radio's law, `draftgym.envs.radio.channel_trace` reads it from a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import j0

from draftgym.envs.radio.radio import Band, Radio, from_db
from draftgym.policies.multispin.uplink import Floats

Mask = NDArray[np.bool_]
Generators = np.random.Generator | Sequence[np.random.Generator]
"""Where randomness comes from: one generator, or one per environment (per leading row). With one
per environment, what an environment draws depends neither on the others nor on their order."""


def draw(
    rng: Generators,
    shape: tuple[int, ...],
    sample: Callable[[np.random.Generator, tuple[int, ...]], Floats],
    rows: Mask | None = None,
) -> Floats:
    """Draws an array, each environment from its own generator where there is one.

    Args:
        rng: Generator, or one per row.
        shape: Shape to draw.
        sample: Draws a shape from a generator.
        rows: Which rows are needed `[shape[0]]`. The generators of others stay as they are, and
            their rows are 0; a single generator draws everything whatever is needed, so that
            nobody's numbers depend on who else is drawn for.

    Raises:
        ValueError: Not one generator per row.
    """
    if isinstance(rng, np.random.Generator):
        return sample(rng, shape)
    if len(shape) < 2 or len(rng) != shape[0]:
        raise ValueError(f"{len(rng)} generators for the rows of an array {shape}")
    drawn = np.zeros(shape)
    for index, generator in enumerate(rng):
        if rows is None or rows[index]:
            drawn[index] = sample(generator, shape[1:])
    return drawn


def uniform(rng: Generators, shape: tuple[int, ...], rows: Mask | None = None) -> Floats:
    """Numbers in [0, 1); arguments as `draw`."""
    return draw(rng, shape, lambda one, size: one.uniform(size=size), rows)


def rayleigh(
    rng: Generators, shape: tuple[int, ...], rows: Mask | None = None
) -> NDArray[np.complex128]:
    """Complex Gaussian coefficients of unit mean power; arguments as `draw`."""
    parts = draw(rng, (*shape, 2), lambda one, size: one.normal(0.0, np.sqrt(0.5), size), rows)
    return np.asarray(parts[..., 0] + 1j * parts[..., 1])


def fade(h: NDArray[np.complex128], rng: Generators, rho: ArrayLike) -> NDArray[np.complex128]:
    """One Gauss-Markov step of unit-power coefficients.

    Args:
        h: Coefficients `[..., K]`.
        rng: See `Generators`.
        rho: Correlation with what they become, in [-1, 1], broadcast against `h`.
    """
    kept = np.asarray(rho, float)
    fresh = np.sqrt(np.maximum(0.0, 1.0 - kept**2))
    return np.asarray(kept * h + fresh * rayleigh(rng, h.shape))


def jakes_correlation(doppler: float, seconds: ArrayLike) -> Floats:
    """Correlation of a channel coefficient with itself some seconds later, J0(2 pi f T).

    Args:
        doppler: Maximal Doppler frequency f in Hz; infinite for independent rounds.
        seconds: Time between the two, any shape.
    """
    seconds = np.asarray(seconds, float)
    if np.isinf(doppler):
        return np.zeros(seconds.shape)
    return np.asarray(j0(2 * np.pi * doppler * seconds))


def chosen(where: Mask | None, shape: tuple[int, ...]) -> tuple[Mask, Mask]:
    """A mask of users in full, and which leading rows it touches.

    Args:
        where: Mask that broadcasts to `shape`; None for everybody.
        shape: `(K,)`, or `(environments, K)`.

    Returns:
        Masks of shape `shape` and `[shape[0]]`.
    """
    full = np.broadcast_to(True if where is None else where, shape)
    return full, np.asarray(full.reshape(shape[0], -1).any(1))


class Channel(Protocol):
    """State of the uplinks of all users, `[..., K]`.

    Attributes:
        shape: `(K,)`, or `(environments, K)`.
        band: The band they share; it tells what an SNR is worth.
    """

    shape: tuple[int, ...]
    band: Band

    @property
    def snr(self) -> Floats:
        """Signal-to-noise ratios of this round `[..., K]`, as `band` takes them."""

    def reset(self, rng: Generators, where: Mask | None = None) -> None:
        """Puts new users in place of old ones.

        Args:
            rng: See `Generators`.
            where: Which users are new `[..., K]`; None for all. For the others nothing changes.
        """

    def advance(self, rng: Generators, seconds: ArrayLike) -> None:
        """Lets time pass.

        Args:
            rng: See `Generators`.
            seconds: How much, one number or one per environment.
        """


class FadingChannel:
    """Rayleigh block fading around mean gains that a user keeps while it is there; a `Channel`.

    Args:
        radio: Gains, power, noise and Doppler frequency.
        shape: `(K,)`, or `(environments, K)`.

    Before the first `reset` there is no signal.
    """

    def __init__(self, radio: Radio, shape: tuple[int, ...]) -> None:
        self.radio, self.shape, self.band = radio, tuple(shape), radio.band
        self.mean_gain = np.zeros(self.shape)
        self._h = np.zeros(self.shape, np.complex128)

    @property
    def gain(self) -> Floats:
        """Power gains of this round `[..., K]`."""
        return np.asarray(self.mean_gain * np.abs(self._h) ** 2)

    @property
    def snr(self) -> Floats:
        """Signal-to-noise ratios of this round `[..., K]`."""
        return self.radio.snr(self.gain)

    def reset(self, rng: Generators, where: Mask | None = None) -> None:
        """Puts new users in place of old ones; see `Channel`."""
        where, rows = chosen(where, self.shape)
        gains = draw(rng, self.shape, self.radio.gains.draw, rows)
        self.mean_gain = np.where(where, gains, self.mean_gain)
        self._h = np.where(where, rayleigh(rng, self.shape, rows), self._h)

    def advance(self, rng: Generators, seconds: ArrayLike) -> None:
        """Lets the fading go on; see `Channel`."""
        rho = jakes_correlation(self.radio.doppler_hz, seconds)
        self._h = fade(self._h, rng, rho[..., None])


class ChannelReport:
    """What a scheduler knows about the SNR: measured with an error, some rounds ago.

    Both papers let the server know this round's channel exactly; age and error are our additions,
    and that errors are Gaussian in decibels is a guess.

    Args:
        rounds_old: Age of what it sees, in rounds; 0 is this round's.
        error_db: Standard deviation of the measurement's error.

    Raises:
        ValueError: A negative argument.
    """

    def __init__(self, rounds_old: int = 0, error_db: float = 0.0) -> None:
        if rounds_old < 0 or error_db < 0:
            raise ValueError("age and error of a channel report must not be negative")
        self.rounds_old, self.error_db = rounds_old, error_db
        self._history: Floats | None = None  # [rounds_old + 1, ..., K], oldest first

    def take(
        self,
        rng: Generators,
        snr: Floats,
        where: Mask | None = None,
        rows: Mask | None = None,
    ) -> Floats:
        """Measures once, for a new round, and returns what the scheduler sees.

        Args:
            rng: See `Generators`.
            snr: True ratios of this round `[..., K]`.
            where: Users that are new `[..., K]`, for whom no older measurement exists; they are
                seen as they are measured now. None: nobody, unless this is the first round.
            rows: Environments that have a new round `[...]`; None for all. Of the others nothing is
                measured, and what is seen of them stays.
        """
        measured = np.array(snr, float)
        if self.error_db:
            noise = draw(
                rng, measured.shape, lambda one, size: one.normal(0, self.error_db, size), rows
            )
            measured *= from_db(noise)
        if self._history is None:
            self._history = np.repeat(measured[None], self.rounds_old + 1, axis=0)
        else:
            later = np.concatenate([self._history[1:], measured[None]])
            self._history = (
                later if rows is None else np.where(rows[..., None], later, self._history)
            )
        if where is not None:
            self._history = np.where(where, measured, self._history)
        return np.array(self._history[0])
