"""`make gpu` measures what it can: the same command on the processor, with tiny settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report import markdown
from benchmarks.system import accelerator as bench
from benchmarks.system.transfers import Transfers, count_transfers
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from tests.tiny_text import save_drafters, save_prompts, save_target


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bench.AcceleratorArgs:
    """Everything tiny, and one device test, which passes."""
    tests = tmp_path / "tests" / "device"
    tests.mkdir(parents=True)
    (tests / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    target = save_target(tmp_path / "target")
    return bench.AcceleratorArgs(
        out=tmp_path / "gpu",
        policies=("ngram:3", "eagle3:2x4", "mine:2"),
        prompts=str(save_prompts(tmp_path / "prompts.jsonl")),
        speed_prompts=2,
        text_prompts=3,
        max_new_tokens=8,
        graph_rows=(1, 3),
        graph_context=16,
        graph_capacity=32,
        repeats=2,
        target=str(target),
        drafters=tuple(save_drafters(tmp_path, target)),
        dtype="float32",
        threads=1,
    )


def test_every_part_has_its_figures_and_a_card_tells_them(args: bench.AcceleratorArgs) -> None:
    result = bench.measure(args)
    assert json.loads(args.json.read_text()) == result
    parts = result["parts"]
    assert list(parts) == list(bench.SHARES) and not any("error" in p for p in parts.values())
    assert "1 passed" in parts["tests"]["summary"]
    everybody = ["plain", "ngram:3", "eagle3:2x4", "hf generate"]
    assert "mine:2" in result["left_out"], "told, and nothing else is lost"
    for part, prompts in (("speed", 2), ("texts", 3)):
        rows = parts[part]["rows"]
        assert [(row["who"], row["prompts"]) for row in rows] == [(n, prompts) for n in everybody]
    assert all(row["same"] == 3 for row in parts["texts"]["rows"]), "float32: the same texts"
    assert parts["speed"]["rows"][0]["ratio"] == [1, 1, 1]
    assert all(row["operations"] > 10 for row in parts["rounds"]["rows"])
    graphs = parts["graphs"]["rows"]
    assert [row["rows"] for row in graphs] == [1, 3]
    assert all(row["difference"] < 1e-4 and row["fixed_ms"] > 0 for row in graphs)
    card = (args.out / "card.md").read_text()
    assert "mine:2 was left out" in card and "| hf generate |" in card
    assert markdown(args.json).strip() in card, "the file alone makes the tables again"


def test_a_part_that_fails_costs_no_other(
    args: bench.AcceleratorArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[Any]:
        raise RuntimeError("CUDA error: an illegal instruction was encountered")

    monkeypatch.setattr(bench, "time_graphs", broken)
    (bench.ROOT / "tests" / "device" / "test_more.py").write_text("def test_no():\n    assert 0\n")
    result = bench.measure(replace(args, parts=("tests", "rounds", "graphs")))
    assert list(result["parts"]) == ["tests", "rounds", "graphs"]
    assert "1 failed" in result["parts"]["tests"]["error"]
    assert result["parts"]["rounds"]["rows"]
    assert "illegal instruction" in result["parts"]["graphs"]["error"]
    assert "time_graphs" in result["parts"]["graphs"]["traceback"]
    assert "graphs (0 s): failed: RuntimeError('CUDA error" in (args.out / "card.md").read_text()


def test_parts_stop_when_their_time_is_up(args: bench.AcceleratorArgs) -> None:
    result = bench.measure(replace(args, parts=("speed", "graphs"), minutes=1e-9))
    assert {row["prompts"] for row in result["parts"]["speed"]["rows"]} == {1}
    assert len(result["parts"]["graphs"]["rows"]) == 1


def test_without_an_accelerator_it_says_so(
    args: bench.AcceleratorArgs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "choose_device", lambda _: (torch.device("cpu"), "none found"))
    with pytest.raises(DraftgymError, match="finds no accelerator") as refused:
        bench.measure(replace(args, require_accelerator=True))
    assert "docs/devices.md" in refused.value.remedy
    bench.measure(replace(args, parts=("rounds",), device="cpu"))
    assert "this measures the processor" in capsys.readouterr().err


def test_what_a_round_moves_is_counted(target: Target) -> None:
    """The meta device stands for an accelerator: it is none, but operations name it."""
    with Transfers() as counted:
        here = torch.ones(3) + 1
        assert (counted.reads, counted.uploads) == (0, 0) and counted.operations > 0
        here.view(3, 1)
        views = counted.operations
        here.unsqueeze(0)
        assert counted.operations == views
    figures = count_transfers(SpeculativeDecoder(target, {}, PlainPolicy()), torch.tensor([5]), 4)
    assert figures["rounds"] == 3 and figures["operations"] > 10
    assert figures["reads"] == figures["uploads"] == 0, "nothing is far from the processor"
