"""Traces become many by writing their texts again, and a training's pages are told apart."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling import many_positions
from benchmarks.scaling.many_positions import PAGES, ManyPositionsArgs, measure, multiply, watch
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.traces.file import read_traces
from tests.traces import save_traces, shards, tiny_traces

LINUX = pytest.mark.skipif(
    not Path(PAGES.format("self")).exists(), reason="this system does not tell pages"
)


@pytest.fixture
def source(target: Target, drafters: dict[str, Drafter], tmp_path: Path) -> Path:
    return save_traces(tiny_traces(target, drafters, max_new_tokens=12), tmp_path / "traces")


def test_texts_are_written_again_under_other_ids(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_positions, "SHARD_TEXTS", 4)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    whole = read_traces(source)
    folder, positions = multiply(source, tmp_path / "many", 2 * whole.positions + 1, "float16")
    many = read_traces(folder)
    assert many.positions == positions == 3 * whole.positions
    assert len({text.question_id for text in many.texts}) == len(many.texts)
    for index, text in enumerate(many.texts):
        theirs = whole.texts[index // 3]
        assert text.question_id == f"{theirs.question_id}~{index % 3}"
        np.testing.assert_array_equal(text.hidden, theirs.hidden.astype(np.float16))
        np.testing.assert_equal(asdict(text)["arms"], asdict(theirs)["arms"])
    files = {path.name: path.read_bytes() for path in shards(folder)}
    shards(folder)[-1].unlink()  # as if it had been interrupted
    assert multiply(source, tmp_path / "many", 2 * whole.positions + 1, "float16")[0] == folder
    assert {path.name: path.read_bytes() for path in shards(folder)} == files
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_states_that_are_not_there_are_refused(source: Path, tmp_path: Path) -> None:
    without, _ = multiply(source, tmp_path, 10, "none")
    with pytest.raises(DraftgymError, match="holds no hidden states"):
        multiply(without, tmp_path / "again", 10, "float16")
    with pytest.raises(DraftgymError, match="cannot become"):
        multiply(tmp_path / "nowhere", tmp_path / "again", 10)


@LINUX
def test_anonymous_memory_is_seen_and_limited(tmp_path: Path) -> None:
    code = "import sys, time; open(sys.argv[1], 'w').write('x'); x = b'x' * 10**8; time.sleep(600)"
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", code, str(mark)]
    taken = watch(command, tmp_path / "log", {"begun": mark, "never": tmp_path / "never"}, 0.09)
    assert taken.stopped and taken.anonymous > 9e7 and taken.file_backed > 0
    assert list(taken.after) == ["begun"]


@LINUX
def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="failed: too bad") as caught:
        watch([sys.executable, "-c", "raise SystemExit('too bad')"], tmp_path / "log", {})
    assert "log" in caught.value.remedy


@pytest.mark.slow
@LINUX
def test_a_training_is_measured(source: Path, tmp_path: Path) -> None:
    args = ManyPositionsArgs(
        traces=source,
        out=tmp_path / "many",
        positions=(50,),
        ways=("stream",),
        states="float16",
        rounds=1,
        threads=1,
        json=tmp_path / "many.json",
    )
    (row,) = measure(args)["rows"]
    assert row["positions"] >= 50 and row["states"] == "float16" and not row["stopped"]
    assert row["anonymous"] > 1e7 and row["file_backed"] > 0
    assert row["mapped"] > row["parquet"] > 0
    assert 0 < row["after"]["laid_out"] <= row["seconds"]
    (table,) = many_positions.tables(json.loads((tmp_path / "many.json").read_text()))
    assert table.rows[0][0] == "with --stream"
