"""An evaluation as JSON: what `draftgym evaluate --json` writes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from draftgym.rollouts.report.calls import make_calls
from draftgym.rollouts.report.rows import Evaluation
from draftgym.rollouts.report.statistics import best_single_arm, decoding_work, make_intervals


def report_json(result: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON types: every figure, and per text what it took."""
    sure = make_intervals(result)
    body: dict[str, Any] = {
        "environment": dict(result.environment),
        "rows": [
            asdict(row) | {"intervals": asdict(sure[row.policy, row.category])}
            for row in result.rows
        ],
        "best_single_arm": best_single_arm(result),
        "arm_costs": [asdict(cost) for cost in result.arm_costs],
        "differences": [asdict(difference) for difference in result.differences],
        "stalls": [asdict(stall) for stall in result.stalls],
        "texts": [
            {
                "policy": text.policy,
                "question_id": text.prompt.question_id,
                "seed": text.generation.seed,
                **asdict(decoding_work(text.generation)),
            }
            for text in result.texts
        ],
    }
    if calls := make_calls(result):
        body["calls"] = [asdict(call) for call in calls]
        body["call_texts"] = [
            {
                "who": text.policy,
                "question_id": text.prompt.question_id,
                "tokens": len(text.generation.tokens),
                "seconds": text.seconds,
            }
            for text in [*result.texts, *result.peer_texts]
        ]
    return body
