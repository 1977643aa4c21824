"""How sure a measured ratio is: the paired bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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

    Prompts are drawn with replacement, and both sides are summed over the same draw (paired): what
    makes a prompt fast or slow for both cancels out. The interval says how much the ratio depends
    on which prompts were picked; it says nothing about drift of the machine between runs.

    Args:
        mine: One entry per prompt.
        reference: The same prompts in the same order.
        level: Share of the resampled ratios inside the interval (percentile method).
        seed: Seed of the draws.

    Raises:
        ValueError: No prompts, or not the same number on both sides.
    """
    if not mine or len(mine) != len(reference):
        raise ValueError(f"paired prompts are needed, got {len(mine)} and {len(reference)}")
    works = [
        (a.tokens, a.seconds, b.tokens, b.seconds) for a, b in zip(mine, reference, strict=True)
    ]
    columns = np.array(works, dtype=np.float64)  # [prompts, 4]
    # How often each prompt is drawn: sums over a draw are then one product.
    counts = np.random.default_rng(seed).multinomial(
        len(works), np.full(len(works), 1 / len(works)), size=RESAMPLES
    )
    sums = np.vstack([columns.sum(axis=0), counts @ columns])
    ratios = (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3])
    tail = 50 * (1 - level)
    low, high = np.percentile(ratios[1:], [tail, 100 - tail]).tolist()
    return Interval(float(ratios[0]), low, high)
