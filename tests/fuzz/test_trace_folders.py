"""A folder of traces is read as it was written, or refused with the file and a remedy."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.traces.file import METADATA_KEY, read_done, read_traces, trace_table
from draftgym.rollouts.traces.shards import ShardWriter, shards_in
from draftgym.rollouts.traces.trace import TraceSet
from tests.fuzz.conftest import Fresh
from tests.handmade.texts import handmade_set, handmade_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
COLUMNS = {
    "text": pyarrow.array(["x"] * 8),
    "numbers": pyarrow.array(range(8)),
    "gaps": pyarrow.array([None, 0, 1, None, 2, 3, 4, 5]),
    "lists": pyarrow.array([[1, 2]] * 8),
    "nothing": pyarrow.nulls(8),
}


@pytest.fixture(scope="module")
def traces() -> TraceSet:
    """Two texts of four tokens."""
    texts = [handmade_text({"a:2": [1, 2, 1]}, question_id=f"q{i}") for i in range(2)]
    return handmade_set(texts)


@pytest.fixture(scope="module")
def shard(traces: TraceSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shard, whole."""
    folder = tmp_path_factory.mktemp("whole")
    with ShardWriter(folder, partial(trace_table, origin=traces.origin), 9) as writer:
        for text in traces.texts:
            writer.add(text)
    return shards_in(folder)[0]


def read_or_refused(folder: Path, traces: TraceSet) -> TraceSet | None:
    """What a folder says; None where both ways of reading it refuse it with a remedy."""
    for read in (lambda: read_done(folder, traces.origin), lambda: read_traces(folder)):
        try:
            found = read()
        except DraftgymError as error:
            assert str(folder) in error.problem and error.remedy
            return None
    assert isinstance(found, TraceSet)
    return found


def rewritten(table: Any, folder: Path) -> Path:
    pyarrow.parquet.write_table(table, folder / "part-00000.parquet")
    return folder


@given(st.data())
def test_damaged_bytes(shard: Path, traces: TraceSet, fresh: Fresh, data: st.DataObject) -> None:
    whole = bytearray(shard.read_bytes())
    if data.draw(st.booleans(), "cut"):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1), "to")]
    places = st.lists(st.integers(0, max(0, len(whole) - 1)), max_size=4)
    for place in data.draw(places, "flip"):
        whole[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1), "to")
    folder = fresh()
    (folder / "part-00000.parquet").write_bytes(whole)
    read_or_refused(folder, traces)


@given(st.data())
def test_strange_metadata(shard: Path, traces: TraceSet, fresh: Fresh, data: st.DataObject) -> None:
    table = pyarrow.parquet.read_table(shard)
    body = json.loads(table.schema.metadata[METADATA_KEY])
    if data.draw(st.booleans(), "origin"):
        key = data.draw(st.sampled_from(sorted(body["origin"])), "key")
        body["origin"][key] = data.draw(VALUES, "value")
        if data.draw(st.booleans(), "less"):
            del body["origin"][key]
    else:
        body[data.draw(st.sampled_from(sorted(body)), "key")] = data.draw(VALUES, "value")
    text = json.dumps(body) if data.draw(st.integers(0, 4)) else data.draw(st.text(), "text")
    stored = text.encode("utf-8", "surrogatepass")
    folder = rewritten(table.replace_schema_metadata({METADATA_KEY: stored}), fresh())
    read_or_refused(folder, traces)


@given(st.data())
def test_strange_columns(shard: Path, traces: TraceSet, fresh: Fresh, data: st.DataObject) -> None:
    table = pyarrow.parquet.read_table(shard)
    index = data.draw(st.integers(0, table.num_columns - 1), "column")
    kind = data.draw(st.sampled_from(["drop", "rows", *COLUMNS]), "kind")
    if kind == "drop":
        table = table.remove_column(index)
    elif kind == "rows":
        first = data.draw(st.integers(0, 8), "first")
        table = table.slice(first, data.draw(st.integers(0, 8), "count"))
    else:
        table = table.set_column(index, table.column_names[index], COLUMNS[kind])
    folder = rewritten(table, fresh())
    found = read_or_refused(folder, traces)
    if found is not None:
        for text in found.texts:
            assert len(text.tokens) == len(text.hidden) == len(text.signals) == len(text) + 1
            assert all(len(arm.committed) == len(text) for arm in text.arms.values())
            assert np.issubdtype(text.tokens.dtype, np.integer)
