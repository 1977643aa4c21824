"""Speed and acceptance of an evaluation's policies with their uncertainty, category by category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation
from draftgym.rollouts.report.rows import ALL, Evaluation, index_texts
from draftgym.rollouts.report.statistics import Interval, Work, ratio_of_sums, speed_ratio


@dataclass(frozen=True)
class Sureness:
    """One policy on one category, each figure with its 95 % interval over prompts.

    Attributes:
        speedup: Decoding speed over plain decoding's.
        acceptance_length: Committed tokens per round.
        against_best: Decoding speed over that of the best single arm.
    """

    speedup: Interval
    acceptance_length: Interval
    against_best: Interval


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
            speedup=_speed_ratio(mine, plain),
            acceptance_length=_acceptance_length(mine),
            against_best=_speed_ratio(mine, single),
        )
    return intervals


def report_json(result: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON types: every figure, and per text what it took."""
    sure = make_intervals(result)
    return {
        "environment": dict(result.environment),
        "rows": [
            asdict(row) | {"intervals": asdict(sure[row.policy, row.category])}
            for row in result.rows
        ],
        "best_single_arm": best_single_arm(result),
        "arm_costs": [asdict(cost) for cost in result.arm_costs],
        "differences": [asdict(difference) for difference in result.differences],
        "texts": [
            {
                "policy": text.policy,
                "question_id": text.prompt.question_id,
                **asdict(_work(text.generation)),
            }
            for text in result.texts
        ],
    }


def _speed_ratio(mine: Sequence[Generation], reference: Sequence[Generation]) -> Interval:
    """Texts that ended with their first token took no decoding and say nothing about speed."""
    pairs = [(a, b) for a, b in zip(mine, reference, strict=True) if a.rounds and b.rounds]
    if not pairs:
        return Interval(0.0, 0.0, 0.0)
    return speed_ratio([_work(a) for a, _ in pairs], [_work(b) for _, b in pairs])


def _acceptance_length(texts: Sequence[Generation]) -> Interval:
    parts = [(_work(text).tokens, len(text.rounds)) for text in texts if text.rounds]
    return ratio_of_sums(parts) if parts else Interval(0.0, 0.0, 0.0)


def _work(text: Generation) -> Work:
    tokens = sum(len(item.record.committed) for item in text.rounds)
    return Work(tokens, text.decode_seconds)
