"""The channels of many users in many environments, and what a scheduler gets to see of them.

A channel has a state per user that lasts for a round, and one number of it matters: the
signal-to-noise ratio. `FadingChannel` draws it from a radio's law,
`draftgym.envs.radio.channel_trace` reads it from a recording; both look alike to an environment.
Randomness comes from explicit generators.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.envs.radio.fading import Generators, draw, fade, jakes_correlation, rayleigh
from draftgym.envs.radio.radio import Band, Radio, from_db


class Channel(Protocol):
    """State of the uplinks of all users, `[..., K]`.

    Attributes:
        shape: `(K,)`, or `(environments, K)`.
        band: The band they share; it tells what an SNR is worth.
    """

    shape: tuple[int, ...]
    band: Band

    @property
    def snr(self) -> NDArray[np.float64]:
        """Signal-to-noise ratios of this round `[..., K]`, as `band` takes them."""

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whose recording is over `[..., K]`; its last value stays."""

    def reset(self, rng: Generators, where: NDArray[np.bool_] | None = None) -> None:
        """Puts new users in place of old ones.

        Args:
            rng: See `draftgym.envs.radio.fading.Generators`.
            where: Which users are new `[..., K]`; None for all. For the others nothing changes.
        """

    def advance(self, rng: Generators, seconds: ArrayLike) -> None:
        """Lets time pass.

        Args:
            rng: See `draftgym.envs.radio.fading.Generators`.
            seconds: How much, one number or one per environment.
        """


class FadingChannel:
    """Rayleigh block fading around mean gains that a user keeps while it is there.

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
    def gain(self) -> NDArray[np.float64]:
        """Power gains of this round `[..., K]`."""
        return np.asarray(self.mean_gain * np.abs(self._h) ** 2)

    @property
    def snr(self) -> NDArray[np.float64]:
        """Signal-to-noise ratios of this round `[..., K]`."""
        return self.radio.snr(self.gain)

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Nobody's: fading never ends."""
        return np.zeros(self.shape, bool)

    def reset(self, rng: Generators, where: NDArray[np.bool_] | None = None) -> None:
        """Puts new users in place of old ones; see `Channel`."""
        where, rows = chosen(where, self.shape)
        gains = draw(rng, self.shape, self.radio.gains.draw, rows)
        self.mean_gain = np.where(where, gains, self.mean_gain)
        self._h = np.where(where, rayleigh(rng, self.shape, rows), self._h)

    def advance(self, rng: Generators, seconds: ArrayLike) -> None:
        """Lets the fading go on; see `Channel`."""
        rho = jakes_correlation(self.radio.doppler_hz, seconds)
        self._h = fade(self._h, rng, rho[..., None])


def chosen(
    where: NDArray[np.bool_] | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A mask of users in full, and which leading rows it touches.

    Args:
        where: Mask that broadcasts to `shape`; None for everybody.
        shape: `(K,)`, or `(environments, K)`.

    Returns:
        Masks of shape `shape` and `[shape[0]]`.
    """
    full = np.broadcast_to(True if where is None else where, shape)
    return full, np.asarray(full.reshape(shape[0], -1).any(1))


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
        self._history: NDArray[np.float64] | None = None  # [rounds_old + 1, ..., K], oldest first

    def take(
        self,
        rng: Generators,
        snr: NDArray[np.float64],
        where: NDArray[np.bool_] | None = None,
        rows: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """Measures once, for a new round, and returns what the scheduler sees.

        Args:
            rng: See `draftgym.envs.radio.fading.Generators`.
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
