"""Whole calls, prompt included: our policies beside other engines that wrote the same prompts.

A peer tells neither rounds nor when its first token came, so all are measured from the outside, by
the same clock. Ratios are to the strongest of the peers that hold the target's very numbers: the
fastest of them over all prompts, and of all peers where there is none or the target is in few bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.model.precision import DTYPES
from draftgym.rollouts.decode.interleaved import DecodedText
from draftgym.rollouts.report.rows import ALL, Evaluation, index_texts
from draftgym.rollouts.report.statistics import Interval, Work, median_ratio, speed_ratio


@dataclass(frozen=True)
class CallRow:
    """One policy or peer on one category.

    Attributes:
        who: Its name.
        weights: In which numbers it holds the weights.
        category: Category of the prompts, or `all`.
        prompts: How many.
        tokens: Tokens written, each text's first one included.
        seconds: Whole calls.
        tokens_per_second: `tokens / seconds`.
        p10: 10th percentile of the single prompts' tokens per second.
        p90: Their 90th percentile.
        ratio: `tokens_per_second` over the baseline's.
        median_ratio: Median of the single prompts' ratios.
        identical_texts: Prompts whose tokens are our plain decoding's, all of them.
    """

    who: str
    weights: str
    category: str
    prompts: int
    tokens: int
    seconds: float
    tokens_per_second: float
    p10: float
    p90: float
    ratio: Interval
    median_ratio: Interval
    identical_texts: int


def make_calls(result: Evaluation) -> list[CallRow]:
    """A row for all who wrote in every category, then in `all`; none where there were no peers.

    The first one of each category is the baseline; the other peers follow, the fastest first, then
    policies.
    """
    if not result.peer_texts:
        return []
    by_key = index_texts([*result.texts, *result.peer_texts])
    prompts = list({text.prompt.question_id: text.prompt for text in result.texts}.values())
    order, rows = _order(result.peer_texts, result.weights), []
    order += [name for name in result.choices if name not in order]
    for category in [*dict.fromkeys(prompt.category for prompt in prompts), ALL]:
        ids = [one.question_id for one in prompts if category in (one.category, ALL)]
        plain, baseline = ([by_key[who, one] for one in ids] for who in (PLAIN, order[0]))
        for who in order:
            mine = [by_key[who, one] for one in ids]
            rows.append(_row(who, result.weights[who], category, mine, plain, baseline))
    return rows


def baseline_told(calls: Sequence[CallRow]) -> str:
    """Whom ratios are to, and why."""
    dense = {calls[0].weights, next(row.weights for row in calls if row.who == PLAIN)} <= set(
        DTYPES
    )
    numbers = " with the target's very numbers (in float32, bfloat16 or float16)" if dense else ""
    return f"{calls[0].who}, the fastest peer{numbers} over all prompts"


def _order(texts: Sequence[DecodedText], weights: dict[str, str]) -> list[str]:
    """Peers, the baseline first and then by their speed."""
    names = list(dict.fromkeys(text.policy for text in texts))
    speed = {name: _speed([text for text in texts if text.policy == name]) for name in names}
    names.sort(key=lambda name: -speed[name])
    dense = weights[PLAIN] in DTYPES
    same = [name for name in names if dense and weights[name] in DTYPES]
    return sorted(names, key=lambda name: name != (same or names)[0])


def _row(
    who: str,
    weights: str,
    category: str,
    mine: Sequence[DecodedText],
    plain: Sequence[DecodedText],
    baseline: Sequence[DecodedText],
) -> CallRow:
    works, reference = [_work(one) for one in mine], [_work(one) for one in baseline]
    p10, p90 = np.percentile([work.tokens / work.seconds for work in works], [10, 90]).tolist()
    pairs = zip(mine, plain, strict=True)
    return CallRow(
        who=who,
        weights=weights,
        category=category,
        prompts=len(mine),
        tokens=sum(work.tokens for work in works),
        seconds=sum(work.seconds for work in works),
        tokens_per_second=_speed(mine),
        p10=p10,
        p90=p90,
        ratio=speed_ratio(works, reference),
        median_ratio=median_ratio(works, reference),
        identical_texts=sum(a.generation.tokens == b.generation.tokens for a, b in pairs),
    )


def _speed(texts: Sequence[DecodedText]) -> float:
    works = [_work(text) for text in texts]
    return sum(work.tokens for work in works) / sum(work.seconds for work in works)


def _work(text: DecodedText) -> Work:
    return Work(len(text.generation.tokens), text.seconds)
