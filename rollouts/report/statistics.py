"""How sure a measured ratio is: the paired bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True)
class Work:
    """What one prompt took.

    Attributes:
        tokens: Tokens written.
        seconds: Time they took.
    """

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Interval:
    """A ratio with its uncertainty.

    Attributes:
        value: The ratio over all prompts.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def speed_ratio(
    mine: Sequence[Work], reference: Sequence[Work], level: float = 0.95, seed: int = 0
) -> Interval:
    """Ratio of two speeds, each total tokens over total seconds, with a bootstrap interval.

    The draws are paired: both sides are summed over the same prompts, so what makes a prompt fast
    or slow for both cancels out.

    Args:
        mine: One entry per prompt.
        reference: The same prompts in the same order.
        level: As `bootstrap`.
        seed: As `bootstrap`.

    Raises:
        ValueError: No prompts, or not the same number on both sides.
    """
    if not mine or len(mine) != len(reference):
        raise ValueError(f"paired prompts are needed, got {len(mine)} and {len(reference)}")
    works = [
        (a.tokens, a.seconds, b.tokens, b.seconds) for a, b in zip(mine, reference, strict=True)
    ]
    return bootstrap(works, lambda s: (s[:, 0] / s[:, 1]) / (s[:, 2] / s[:, 3]), level, seed)


def ratio_of_sums(
    parts: Sequence[tuple[float, float]], level: float = 0.95, seed: int = 0
) -> Interval:
    """Ratio of two totals, such as tokens per round, with a bootstrap interval.

    Args:
        parts: Each prompt's share of the numerator and of the denominator.
        level: As `bootstrap`.
        seed: As `bootstrap`.

    Raises:
        ValueError: No prompts.
    """
    return bootstrap(parts, lambda sums: sums[:, 0] / sums[:, 1], level, seed)


def bootstrap(
    per_prompt: Sequence[Sequence[float]],
    ratio: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A ratio of totals over prompts, with the percentile interval of the bootstrap.

    Prompts are drawn with replacement. The interval says how much the ratio depends on which
    prompts were picked; it says nothing about drift of the machine between runs.

    Args:
        per_prompt: What each prompt adds to the totals, shape `[prompts, columns]`.
        ratio: From totals `[draws, columns]` to one ratio per draw `[draws]`.
        level: Share of the resampled ratios inside the interval.
        seed: Seed of the draws.

    Raises:
        ValueError: No prompts.
    """
    if not per_prompt:
        raise ValueError("at least one prompt is needed")
    columns = np.array(per_prompt, dtype=np.float64)  # [prompts, columns]
    # How often each prompt is drawn: sums over a draw are then one product.
    counts = np.random.default_rng(seed).multinomial(
        len(columns), np.full(len(columns), 1 / len(columns)), size=RESAMPLES
    )
    ratios = ratio(np.vstack([columns.sum(axis=0), counts @ columns]))
    tail = 50 * (1 - level)
    low, high = np.percentile(ratios[1:], [tail, 100 - tail]).tolist()
    return Interval(float(ratios[0]), low, high)
