"""Steps of small LMs are timed beside the target's, none of a size twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.drafters.small_lm_steps import StepsArgs, measure, tables
from tests.tiny import VOCAB, tiny_model


def test_every_size_is_timed_once(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    args = StepsArgs(target=str(tmp_path), layers=(3, 1), rows=(999, VOCAB, 20), repeats=2)
    result = measure(args)
    steps = result["steps"]
    sizes = [(step["layers"], step["rows"]) for step in steps]
    assert sizes == [(3, VOCAB), (3, 20), (1, VOCAB), (1, 20)]
    for step in steps:
        assert step["share"] == pytest.approx(step["ms"] / step["target_ms"])
    (table,) = tables(result)
    assert len(table.rows) == len(steps)
