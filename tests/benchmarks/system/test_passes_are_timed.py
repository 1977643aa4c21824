"""Every way to run a pass is timed on the same rows, and leaves the decoder able to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.system.passes import WAYS, PassesArgs, measure, tables
from draftgym.decoding.model.compact.compiled.graph import openvino_is_there
from tests.tiny import tiny_model


def test_every_way_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().save_pretrained(tmp_path)
    rows = (1, 3, 40)
    result = measure(PassesArgs(target=str(tmp_path), rows=rows, context=5, repeats=2))
    assert [row["rows"] for row in result["rows"]] == list(rows)
    for row in result["rows"]:
        for way in WAYS:
            left_out = way == "compiled" and (row["rows"] == 40 or not openvino_is_there())
            assert (row[f"{way}_ms"] is None) == left_out
            assert left_out or row[f"{way}_ms"] > 0
    (table,) = tables(result)
    assert len(table.rows) == 3 and "compiled" in table.head
    assert ("nothing is compiled" in capsys.readouterr().out) == (not openvino_is_there())
