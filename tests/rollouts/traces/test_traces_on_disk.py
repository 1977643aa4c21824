"""Traces survive interruption, say where they come from, and are refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import draftgym.rollouts.traces.collect
import draftgym.rollouts.traces.tracer
from draftgym.decoding import provenance
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.decode.options import DecodingOptions
from draftgym.rollouts.traces.collect import CollectArgs, collect
from draftgym.rollouts.traces.file import read_traces, trace_table
from draftgym.rollouts.traces.shards import ShardWriter
from draftgym.rollouts.traces.trace import TextTrace, TraceSet
from tests.tiny import ARMS, PROMPTS, numbered_target, tiny_costs
from tests.traces import shards, tiny_traces


@pytest.fixture
def args(
    target: Target,
    drafters: dict[str, Drafter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> CollectArgs:
    """Collects traces of the tiny models."""
    numbered = numbered_target(target)
    costs = tiny_costs(target, drafters)
    monkeypatch.setattr(DecodingOptions, "load", lambda self: (numbered, drafters))
    monkeypatch.setattr(draftgym.rollouts.traces.tracer, "load_cost_model", lambda *_: costs)
    monkeypatch.setattr(draftgym.rollouts.traces.collect, "load_prompts", lambda *_, **__: PROMPTS)
    return CollectArgs(
        out=tmp_path / "traces", arms=ARMS, max_new_tokens=24, batch_size=1, shard_texts=1
    )


def assert_equal(one: TraceSet, other: TraceSet) -> None:
    assert one.origin == other.origin
    left, right = (sorted(traces.texts, key=_question) for traces in (one, other))
    for mine, theirs in zip(left, right, strict=True):
        for name in ("question_id", "category", "prompt_hash", "prompt_tokens"):
            assert getattr(mine, name) == getattr(theirs, name)
        for name in ("tokens", "signals", "hidden"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert mine.arms.keys() == theirs.arms.keys()
        for name, arm in mine.arms.items():
            for part in ("committed", "drafted", "depth"):
                np.testing.assert_array_equal(getattr(arm, part), getattr(theirs.arms[name], part))
        assert mine.logprobs.keys() == theirs.logprobs.keys()
        for name, chain in mine.logprobs.items():
            np.testing.assert_array_equal(chain, theirs.logprobs[name])


def _question(text: TextTrace) -> str:
    return text.question_id


def test_traces_come_back_as_they_were_written(
    target: Target, drafters: dict[str, Drafter], tmp_path: Path
) -> None:
    traces = tiny_traces(target, drafters, temperature=1.0)
    with ShardWriter(tmp_path, partial(trace_table, origin=traces.origin), 3) as writer:
        for text in traces.texts:
            writer.add(text)
    assert len(shards(tmp_path)) == 2
    back = read_traces(tmp_path)
    assert_equal(traces, back)
    assert back.origin.cost_model == traces.origin.cost_model
    assert back.texts[0].hidden.dtype == np.float32


def test_one_row_per_token_for_any_tool_to_read(args: CollectArgs) -> None:
    import pyarrow.parquet

    traces = collect(args)
    tables = [pyarrow.parquet.read_table(shard) for shard in shards(args.out)]
    rows = sum(table.num_rows for table in tables)
    assert rows == sum(len(text.tokens) for text in traces.texts)
    names = set(tables[0].column_names)
    assert {"question_id", "position", "token", "entropy", "repeat", "hidden"} <= names
    assert {f"eagle3:3.{part}" for part in ("committed", "drafted", "depth")} <= names


def test_an_interrupted_collection_goes_on_where_it_stopped(
    args: CollectArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(replace(args, out=args.out.with_name("whole")))
    trace_texts, traced = draftgym.rollouts.traces.tracer.trace_texts, []

    def dying(*arguments: object) -> object:
        for text in trace_texts(*arguments):  # type: ignore[arg-type]
            if len(traced) == 3:
                raise KeyboardInterrupt
            traced.append(text.question_id)
            yield text

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(draftgym.rollouts.traces.tracer, "trace_texts", dying)
        collect(args)
    (args.out / ".part-00007.parquet").write_bytes(b"cut off")
    assert len(read_traces(args.out).texts) == 3
    assert_equal(collect(args), whole)
    before = [shard.stat().st_mtime_ns for shard in shards(args.out)]
    collect(args)
    assert [shard.stat().st_mtime_ns for shard in shards(args.out)] == before, "nothing was left"


def test_batches_do_not_change_traces(args: CollectArgs) -> None:
    alone = collect(replace(args, out=args.out.with_name("alone"), batch_size=1))
    assert_equal(collect(replace(args, batch_size=1)), alone)
    together = collect(
        replace(args, out=args.out.with_name("together"), batch_size=4, shard_texts=len(PROMPTS))
    )
    for mine, theirs in zip(together.texts, alone.texts, strict=True):
        np.testing.assert_array_equal(mine.tokens, theirs.tokens)
        for name, arm in mine.arms.items():
            np.testing.assert_array_equal(arm.committed, theirs.arms[name].committed)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"arms": ARMS[:2]}, "arms"),
        ({"temperature": 1.0}, "temperature"),
        ({"max_new_tokens": 20}, "max_new_tokens"),
    ],
)
def test_traces_of_other_settings_are_not_mixed(
    args: CollectArgs, changes: dict[str, object], difference: str
) -> None:
    collect(args)
    with pytest.raises(DraftgymError, match=f"another origin .*{difference}"):
        collect(replace(args, **changes))  # type: ignore[arg-type]


def test_collecting_goes_on_in_the_dtype_that_it_began_with(
    args: CollectArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe of the machine may come out another way, as it does when others use it."""
    asked, load = [], CollectArgs.load

    def noted(self: CollectArgs) -> object:
        asked.append(self.dtype)
        return load(self)

    monkeypatch.setattr(CollectArgs, "load", noted)
    collect(replace(args, dtype="auto"))
    collect(replace(args, dtype="auto"))
    assert asked == ["auto", "float32"]


def test_collecting_elsewhere_goes_on_with_a_note(
    args: CollectArgs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which texts are traced does not depend on the device, and costs are the first one's."""
    began = collect(args).origin.host
    assert began["device"] == "cpu" and began["device_name"] and began["device_reason"]
    collect(args)
    assert "now runs on" not in capsys.readouterr().err
    monkeypatch.setattr(provenance, "cpu_name", lambda: "GPU X")
    assert collect(args).origin.host["device_name"] == began["device_name"]
    assert f"{began['device_name']} and now runs on GPU X: costs stay" in capsys.readouterr().err


def test_traces_of_other_weights_are_refused(
    args: CollectArgs, drafters: dict[str, Drafter], monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(args)
    monkeypatch.setattr(type(drafters["eagle3"]), "fingerprint", "other weights")
    with pytest.raises(DraftgymError, match=r"another origin .*other weights") as caught:
        collect(args)
    assert "another folder" in caught.value.remedy


def test_a_changed_prompt_is_refused(args: CollectArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(args)
    changed = [replace(PROMPTS[0], turns=("99",)), *PROMPTS[1:]]
    monkeypatch.setattr(draftgym.rollouts.traces.collect, "load_prompts", lambda *_, **__: changed)
    with pytest.raises(DraftgymError, match="traced before with another text"):
        collect(args)


def test_what_cannot_be_read_is_refused_with_a_remedy(args: CollectArgs, tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="no traces in") as caught:
        read_traces(tmp_path / "nothing")
    assert "draftgym collect" in caught.value.remedy
    collect(args)
    shard = shards(args.out)[0]
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(DraftgymError, match="cannot read"):
        read_traces(args.out)
    shard.unlink()
    foreign = pytest.importorskip("pyarrow").table({"a": [1]})
    pytest.importorskip("pyarrow.parquet").write_table(foreign, args.out / "part-00000.parquet")
    with pytest.raises(DraftgymError, match="holds no traces"):
        read_traces(args.out)


def test_rejection_and_empty_arms_are_refused(args: CollectArgs) -> None:
    with pytest.raises(DraftgymError, match="depend on the arm"):
        collect(replace(args, verification="rejection", temperature=1.0))
    with pytest.raises(DraftgymError, match="names nothing that drafts"):
        collect(replace(args, arms=("plain",)))
