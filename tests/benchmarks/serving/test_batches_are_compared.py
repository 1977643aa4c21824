"""The comparison of who chooses for batches tunes on training texts and shows held-out ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import markdown
from benchmarks.serving.batch_contenders import MEAN, ORACLE
from benchmarks.serving.batches import TABLE, BatchesArgs, measure
from draftgym.agents.serving.fit import ForecastFitting
from draftgym.decoding.errors import DraftgymError
from tests.handmade.served import served_traces
from tests.traces import save_traces


@pytest.fixture
def args(tmp_path: Path) -> BatchesArgs:
    traces = served_traces(12)
    parts = replace(traces, texts=traces.texts[:7]), replace(traces, texts=traces.texts[7:])
    return BatchesArgs(
        traces=save_traces(parts[0], tmp_path / "traces"),
        heldout=save_traces(parts[1], tmp_path / "heldout"),
        sizes=(1, 16),
        loads=(0.5,),
        places=4,
        requests=6,
        servers=2,
        seeds=1,
        fitting=ForecastFitting(examples=2_000, epochs=2, batch_size=256, width=16),
        steps=5,
        json=tmp_path / "batches.json",
    )


@pytest.mark.slow
def test_everybody_is_compared_on_the_same_texts(args: BatchesArgs) -> None:
    result = measure(args)
    rows = {(row["who"], row["size"]): row for row in result["identical"]}
    assert result["texts"] == {"train": 7, "heldout": 5}
    for size in args.sizes:
        everybody = {who for who, its in rows if its == size}
        for name in ("plain", "ngram:8", TABLE, f"{TABLE} in cascade", "forecast, seed 0", ORACLE):
            assert name in everybody
        assert rows["plain", size]["all"] == 1.0
        for kind, (rule, *_) in rows["plain", size]["best"].items():
            assert rows[rule, size]["best"][kind][1:] == pytest.approx([1.0, 1.0, 1.0])
            assert rows[MEAN, size][kind] == pytest.approx(rows["forecast, seed 0", size][kind])
        assert rows[ORACLE, size]["all"] > 1.5
    assert {row["who"] for row in result["load"]} == everybody - {ORACLE, MEAN}
    assert result["speed"][0]["median"] > 0
    assert args.json is not None and TABLE in markdown(args.json)


def test_impossible_sizes_are_refused(args: BatchesArgs) -> None:
    for wrong in (replace(args, sizes=()), replace(args, loads=(0.0,)), replace(args, places=0)):
        with pytest.raises(DraftgymError):
            measure(wrong)
