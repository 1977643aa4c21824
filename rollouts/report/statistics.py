"""How sure a measured ratio is: the paired bootstrap over prompts.

Beside the ratio of totals, what a long run gains, stands the median of single prompts' ratios: a
machine that stands still at one text moves the first and not the second.

`scipy.stats.bootstrap` draws other resamples from the same seed, and published intervals are to be
found again to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation
from draftgym.rollouts.report.rows import ALL, Evaluation, index_texts

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
        value: Over all prompts.
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
    works = _paired(mine, reference)
    return bootstrap(works, lambda s: (s[:, 0] / s[:, 1]) / (s[:, 2] / s[:, 3]), level, seed)


def median_ratio(
    mine: Sequence[Work], reference: Sequence[Work], level: float = 0.95, seed: int = 0
) -> Interval:
    """Median over prompts of the ratio of two speeds, with a bootstrap interval.

    Args:
        mine: One entry per prompt.
        reference: The same prompts in the same order.
        level: As `bootstrap`.
        seed: As `bootstrap`.

    Raises:
        ValueError: No prompts, or not the same number on both sides.
    """
    ratios = np.sort([(a / s) / (b / t) for a, s, b, t in _paired(mine, reference)])
    count = len(ratios)
    drawn = _draws(count, seed).cumsum(axis=1)  # how many of a draw are no larger than each ratio
    below, above = (count + 1) // 2, count // 2 + 1  # the same one where their number is odd
    medians = (ratios[(drawn >= below).argmax(1)] + ratios[(drawn >= above).argmax(1)]) / 2
    low, high = _ends(medians, level)
    return Interval(float(np.median(ratios)), low, high)


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


def _paired(
    mine: Sequence[Work], reference: Sequence[Work]
) -> list[tuple[float, float, float, float]]:
    """Tokens and seconds of both sides, by prompt."""
    if not mine or len(mine) != len(reference):
        raise ValueError(f"paired prompts are needed, got {len(mine)} and {len(reference)}")
    pairs = zip(mine, reference, strict=True)
    return [(a.tokens, a.seconds, b.tokens, b.seconds) for a, b in pairs]


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
    ratios = ratio(np.vstack([columns.sum(axis=0), _draws(len(columns), seed) @ columns]))
    low, high = _ends(ratios[1:], level)
    return Interval(float(ratios[0]), low, high)


def _draws(count: int, seed: int) -> NDArray[np.int64]:
    """How often each prompt is drawn: sums over a draw are then one product `[draws, prompts]`."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def _ends(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail]).tolist()
    return low, high


@dataclass(frozen=True)
class Sureness:
    """One policy on one category, each figure with its 95 % interval over prompts.

    Attributes:
        speedup: Decoding speed over plain decoding's.
        acceptance_length: Committed tokens per round.
        against_best: Decoding speed over that of the best single arm.
        median_speedup: Median of the single prompts' speed-ups.
        median_against_best: The same over the best single arm.
    """

    speedup: Interval
    acceptance_length: Interval
    against_best: Interval
    median_speedup: Interval
    median_against_best: Interval


def best_single_arm(result: Evaluation) -> str:
    """The policy that was fastest over all prompts among those with only one arm to choose."""
    alone = [
        row for row in result.rows if row.category == ALL and len(result.choices[row.policy]) == 1
    ]
    return max(alone, key=lambda row: row.tokens_per_second).policy


def make_intervals(result: Evaluation) -> dict[tuple[str, str], Sureness]:
    """Intervals by (policy, category), for every row of the evaluation."""
    by_key = index_texts(result.texts)
    prompts = list({text.prompt.question_id: text.prompt for text in result.texts}.values())
    best = best_single_arm(result)
    intervals = {}
    for row in result.rows:
        ids = [one.question_id for one in prompts if row.category in (one.category, ALL)]
        mine, plain, single = (
            [by_key[policy, one].generation for one in ids] for policy in (row.policy, PLAIN, best)
        )
        intervals[row.policy, row.category] = Sureness(
            speedup=_compared(speed_ratio, mine, plain),
            acceptance_length=_acceptance_length(mine),
            against_best=_compared(speed_ratio, mine, single),
            median_speedup=_compared(median_ratio, mine, plain),
            median_against_best=_compared(median_ratio, mine, single),
        )
    return intervals


def _compared(
    ratio: Callable[[Sequence[Work], Sequence[Work]], Interval],
    mine: Sequence[Generation],
    reference: Sequence[Generation],
) -> Interval:
    """Texts that ended with their first token took no decoding and say nothing about speed."""
    pairs = [(a, b) for a, b in zip(mine, reference, strict=True) if a.rounds and b.rounds]
    if not pairs:
        return Interval(0.0, 0.0, 0.0)
    return ratio([decoding_work(a) for a, _ in pairs], [decoding_work(b) for _, b in pairs])


def _acceptance_length(texts: Sequence[Generation]) -> Interval:
    parts = [(decoding_work(text).tokens, len(text.rounds)) for text in texts if text.rounds]
    return ratio_of_sums(parts) if parts else Interval(0.0, 0.0, 0.0)


def decoding_work(text: Generation) -> Work:
    """What the rounds of a text took."""
    tokens = sum(len(item.record.committed) for item in text.rounds)
    return Work(tokens, text.decode_seconds)
