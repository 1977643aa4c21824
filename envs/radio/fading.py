"""How fading is remembered from one round to the next.

A channel coefficient h is complex Gaussian (Rayleigh fading: |h|^2 is exponential). When a device
moves among scatterers all around it, h at two moments T apart has the correlation J0(2 pi f T),
where f is the maximal Doppler frequency (Clarke and Jakes). A Gauss-Markov step has exactly that
correlation between a round and the next:

    h' = rho h + sqrt(1 - rho^2) w,    rho = J0(2 pi f T),    w ~ CN(0, 1).

Over n equal rounds it gives rho^n, where Jakes' spectrum has J0(2 pi f n T): neighbours are right,
the oscillating tail is not. That is the usual price for a state that one number per user holds.
Both Multi-SPIN papers draw every round anew; memory is our addition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LIGHT = 299_792_458.0
"""Speed of light, m/s."""

Generators = np.random.Generator | Sequence[np.random.Generator]
"""Where randomness comes from: one generator, or one per environment (per leading row). With one
per environment, what an environment draws depends neither on the others nor on their order."""


def draw(
    rng: Generators,
    shape: tuple[int, ...],
    sample: Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]],
    rows: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
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


def rayleigh(
    rng: Generators, shape: tuple[int, ...], rows: NDArray[np.bool_] | None = None
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


def doppler_hz(speed: float, carrier_hz: float) -> float:
    """Maximal Doppler frequency of a device moving at `speed` m/s."""
    return speed * carrier_hz / LIGHT


def jakes_correlation(doppler: float, seconds: ArrayLike) -> NDArray[np.float64]:
    """Correlation of a channel coefficient with itself some seconds later, J0(2 pi f T).

    Args:
        doppler: Maximal Doppler frequency f in Hz; infinite for independent rounds.
        seconds: Time between the two, any shape.
    """
    seconds = np.asarray(seconds, float)
    if np.isinf(doppler):
        return np.zeros(seconds.shape)
    return bessel_j0(2 * np.pi * doppler * seconds)


def bessel_j0(x: ArrayLike) -> NDArray[np.float64]:
    """Bessel function of the first kind and order zero, to about 1e-7.

    Polynomials of Abramowitz and Stegun, 9.4.1 and 9.4.3; numpy has none, and scipy would be a
    dependency for this alone.
    """
    size = np.abs(np.asarray(x, float))
    near = np.polynomial.polynomial.polyval((np.minimum(size, 3.0) / 3) ** 2, _NEAR)
    far_x = np.maximum(size, 3.0)
    amplitude = np.polynomial.polynomial.polyval(3 / far_x, _AMPLITUDE)
    phase = far_x + np.polynomial.polynomial.polyval(3 / far_x, _PHASE)
    return np.asarray(np.where(size <= 3, near, amplitude * np.cos(phase) / np.sqrt(far_x)))


_NEAR = (1.0, -2.2499997, 1.2656208, -0.3163866, 0.0444479, -0.0039444, 0.0002100)
_AMPLITUDE = (
    0.79788456,
    -0.00000077,
    -0.00552740,
    -0.00009512,
    0.00137237,
    -0.00072805,
    0.00014476,
)
_PHASE = (
    -0.78539816,
    -0.04166397,
    -0.00003954,
    0.00262573,
    -0.00054125,
    -0.00029333,
    0.00013558,
)
