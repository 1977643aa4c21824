"""`make gpu` measures what it can: the same command on the processor, with tiny settings."""

from __future__ import annotations

import json
import operator
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report import markdown
from benchmarks.system.accelerator import __main__ as bench
from benchmarks.system.accelerator import parts
from benchmarks.system.accelerator.apart import apart
from benchmarks.system.accelerator.card import card
from benchmarks.system.graphs import time_graphs
from benchmarks.system.transfers import Transfers, count_transfers, profile_kernels
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import Generation, PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model import precision
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round
from draftgym.rollouts.decode.interleaved import DecodedText
from draftgym.rollouts.peers.peer import Peer
from draftgym.rollouts.peers.transformers import GENERATE
from draftgym.rollouts.prompts.sets import Prompt
from tests.device.places import PRETENDED, there, without
from tests.device.test_a_round_reads_one_verdict import READS
from tests.device.test_texts_are_those_of_the_processor import session_of
from tests.tiny_text import save_drafters, save_prompts, save_target, text_target


def here(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> Any:
    """Runs a part in this process, which has loaded everything already."""
    return function(*arguments)


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bench.AcceleratorArgs:
    """Everything tiny, and one device test, which passes."""
    tests = tmp_path / "tests" / "device"
    tests.mkdir(parents=True)
    (tests / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # its pytest starts in half a second
    return bench.AcceleratorArgs(
        out=tmp_path / "gpu",
        policies=("ngram:3", "eagle3:2x4", "mine:2"),
        prompts=str(save_prompts(tmp_path / "prompts.jsonl")),
        speed_prompts=2,
        text_prompts=3,
        max_new_tokens=8,
        repeats=2,
        target=str(save_target(tmp_path / "target")),
        drafters=tuple(save_drafters(text_target(), tmp_path)),
        dtype="float32",
        threads=1,
        device="cpu",
    )


def test_every_part_has_its_figures_and_a_card_tells_them(args: bench.AcceleratorArgs) -> None:
    result = bench.measure(args, here)
    assert json.loads(args.json.read_text()) == result
    found = result["parts"]
    assert list(found) == list(bench.PARTS) and not any("error" in p for p in found.values())
    assert "1 passed" in found["tests"]["summary"]
    everybody = ["plain", "ngram:3", "eagle3:2x4", "transformers"]
    assert "mine:2" in found["speed"]["left_out"], "told, and nothing else is lost"
    speeds, texts = found["speed"]["rows"], found["texts"]["rows"]
    assert [(row["who"], row["prompts"]) for row in speeds] == [(who, 2) for who in everybody]
    assert speeds[0]["ratio"] == [1, 1, 1]
    assert {row["same_as_plain"] for row in speeds} == {2}
    assert [row["who"] for row in texts] == [*everybody, parts.PROCESSOR]
    assert {(row["prompts"], row["same"]) for row in texts} == {(3, 3)}, "float32: the same texts"
    assert found["rounds"]["rows"][0]["rounds"] == 7, "the first token is the prompt's"
    assert all(row["operations"] > 10 for row in found["rounds"]["rows"])
    assert "not cuda" in found["graphs"]["summary"]
    told = args.card.read_text()
    assert "mine:2 was left out" in told and "| transformers |" in told and "not cuda" in told
    assert markdown(args.json).strip() in told, "the file alone makes the tables again"


@pytest.mark.slow
@without
def test_an_accelerators_texts_are_compared_with_the_processors(
    args: bench.AcceleratorArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def choose(name: str) -> tuple[torch.device, str]:
        asked.append(name)
        return torch.device("cpu" if name == "cpu" else PRETENDED), "asked for"

    for module in (precision, parts, bench):
        monkeypatch.setattr(module, "choose_device", choose)
    args.load("float32")  # transformers' modules must not be imported while torch is patched
    asked.clear()
    with there(PRETENDED):
        some = replace(args, device=PRETENDED, parts=("texts", "rounds", "graphs"))
        found = bench.measure(some, here)["parts"]
    assert "cpu" in asked, "the same target is loaded there, too"
    assert {(row["prompts"], row["same"]) for row in found["texts"]["rows"]} == {(3, 3)}
    assert [row["who"] for row in found["texts"]["rows"]][-1] == parts.PROCESSOR
    reads = {row["who"]: row["reads"] for row in found["rounds"]["rows"]}
    assert (reads["plain"], reads["ngram:3"]) == (1, 1)
    assert "not cuda" in found["graphs"]["summary"]


def test_tests_are_those_of_the_accelerator_that_was_asked_for(
    args: bench.AcceleratorArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "choose_device", lambda _: (torch.device("cuda"), "asked for"))
    with pytest.raises(DraftgymError, match="1 deselected"):
        parts.run_tests(args, time.monotonic() + 60)
    more = "def test_it(device):\n    pass\n"
    devices = 'import pytest\n@pytest.mark.parametrize("device", ["pretend:0", "cuda"])\n'
    (parts.ROOT / "tests" / "device" / "test_more.py").write_text(devices + more)
    summary = parts.run_tests(args, time.monotonic() + 60)["summary"]
    assert "on cuda" in summary and "1 passed, 2 deselected" in summary


def test_figures_of_a_gpu_are_told() -> None:
    facts = dict.fromkeys(("target", "dtype", "cpu", "device_reason", "precision_reason"), "x")
    facts |= dict.fromkeys(("torch", "transformers", "fingerprint", "git_revision"), "y")
    facts |= {"command": "z", "device": "cuda:0", "device_name": "A GPU", "threads": 4}
    timed = {f"{name}_spread": 0.05 for name in ("ordinary", "fixed", "captured")}
    one = {"rows": 4, "ordinary_ms": 6.0, "fixed_ms": 7.0, "captured_ms": 1.5, "difference": 0.03}
    rounds = {"who": "plain", "reads": 1.0, "uploads": 2.0, "operations": 500.0}
    found = {
        "rounds": {
            "seconds": 9.0,
            "rows": [rounds | {"kernels": 400.0, "busy": 0.25}, rounds | {"profiler": "no CUPTI"}],
        },
        "graphs": {"seconds": 9.0, "context": 8, "capacity": 16, "rows": [one | timed]},
    }
    told = card({"environment": facts, "parts": found})
    assert told.startswith("# draftgym on A GPU\n")
    assert "| plain | 1.0 | 2.0 | 500 | 400 | 25% |" in told and "plain: no CUPTI" in told
    assert "| 4 | 6.00 (5%) | 7.00 (5%) | 1.50 (5%) | 4.00 | 0.03 |" in told


def test_without_cuda_no_kernel_is_profiled(target: Target) -> None:
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    assert profile_kernels(decoder, torch.tensor([5]), 3) == {"kernels": 0, "busy": 0}


def test_a_part_that_fails_costs_no_other_and_is_made_up_for(
    args: bench.AcceleratorArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = parts.ROOT / "tests" / "device" / "test_more.py"
    broken.write_text("def test_no():\n    assert 0\n")
    some = replace(args, parts=("tests", "rounds", "graphs"))
    first = bench.measure(some, here)["parts"]
    assert list(first) == ["tests", "rounds", "graphs"]
    assert "1 failed" in first["tests"]["error"] and first["rounds"]["rows"]
    assert "failed: " in args.card.read_text()

    ran: list[str] = []

    def counting(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> Any:
        ran.append(str(arguments[0]))
        return function(*arguments)

    broken.unlink()
    second = bench.measure(some, counting)["parts"]
    assert ran[1:] == ["tests"], "the first call describes the target"
    assert "1 passed" in second["tests"]["summary"] and "error" not in second["tests"]
    assert second["rounds"] == first["rounds"]
    ran.clear()
    bench.measure(replace(some, parts=("graphs",), repeats=3), counting)
    assert ran[1:] == ["graphs"]
    assert list(json.loads(args.json.read_text())["parts"]) == ["graphs"], "other settings: anew"


def test_a_part_whose_process_dies_is_told(args: bench.AcceleratorArgs) -> None:
    def dying(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> Any:
        if arguments[0] == "rounds":
            return apart(os._exit, (7,), 60.0)
        return function(*arguments)

    found = bench.measure(replace(args, parts=("rounds", "graphs")), dying)["parts"]
    assert "exit status 7" in found["rounds"]["error"]
    assert "not cuda" in found["graphs"]["summary"]


def test_a_contender_that_fails_is_left_out(
    args: bench.AcceleratorArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        def write(*_: object) -> Any:
            raise RuntimeError("CUDA error: no kernel image is available")

        return [Peer(GENERATE, "0", "float32", write)]

    monkeypatch.setattr(parts.transformers, "load", broken)
    found = bench.measure(replace(args, parts=("speed",)), here)["parts"]["speed"]
    assert [row["who"] for row in found["rows"]] == ["plain", "ngram:3", "eagle3:2x4"]
    assert "no kernel image" in found["left_out"][GENERATE]
    assert "speed: transformers was left out: RuntimeError" in args.card.read_text()


def test_a_process_of_its_own_answers_raises_or_is_killed() -> None:
    assert apart(operator.add, (2, 3), 60.0) == 5
    with pytest.raises(ZeroDivisionError):
        apart(operator.truediv, (1, 0), 60.0)
    with pytest.raises(DraftgymError, match="no answer within 0 s"):
        apart(time.sleep, (600,), 0.0)


def test_parts_stop_when_their_time_is_up(args: bench.AcceleratorArgs) -> None:
    result = bench.measure(replace(args, parts=("speed", "rounds"), minutes=0.0), here)
    assert {row["prompts"] for row in result["parts"]["speed"]["rows"]} == {1}
    assert [row["who"] for row in result["parts"]["rounds"]["rows"]] == ["plain"]


def test_without_an_accelerator_it_says_so(
    args: bench.AcceleratorArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DraftgymError, match="finds no accelerator") as refused:
        bench.measure(replace(args, require_accelerator=True), here)
    page = Path(__file__).parents[3] / "docs" / "guides" / "devices.md"
    assert "docs/guides/devices.md" in refused.value.remedy
    assert "torch for your device" in page.read_text(), "the page says what to install"
    bench.measure(replace(args, parts=("graphs",)), here)
    assert "this measures the processor" in capsys.readouterr().err


def test_the_processor_disagrees_where_a_text_is_not_its_own() -> None:
    target, prompt = text_target(), Prompt("q1", "chat", ("abc",))
    ids = target.encode("abc")
    tokens = SpeculativeDecoder(target, {}, PlainPolicy()).generate(ids, 8).tokens

    def differs(written: list[int]) -> Any:
        return parts.processor_differs(target, DecodedText(prompt, "plain", Generation(written)))

    assert differs(tokens) is None
    other = (tokens[5] + 1) % target.vocab_size
    found = differs([*tokens[:5], other, *tokens[6:]])
    assert (found.index, found.plain_token, found.policy_token) == (5, other, tokens[5])
    assert found.margin > 0


def test_passes_of_fixed_shape_are_timed_and_compared(target: Target) -> None:
    rows = list(time_graphs(target, [1, 3], context=16, capacity=32, repeats=2))
    assert [row["rows"] for row in rows] == [1, 3]
    for row in rows:
        assert row["difference"] < 1e-4 and row["fixed_ms"] > 0 and row["ordinary_ms"] > 0
        assert "captured_ms" not in row, "graphs are CUDA's"


@without
@pytest.mark.parametrize("arm", READS)
def test_reads_of_a_round_are_counted(arm: str) -> None:
    with there(PRETENDED) as reads:
        session = session_of(PRETENDED)
        play_round(session, parse_arm(arm))
        assert reads is not None
        before = reads.count
        with Transfers() as counted:
            play_round(session, parse_arm(arm))
        assert counted.reads == reads.count - before == READS[arm]
        assert counted.uploads > 0


def test_only_what_computes_or_moves_is_counted(target: Target) -> None:
    with Transfers() as counted:
        one = torch.ones(3) + 1
        assert (counted.reads, counted.uploads) == (0, 0)
        assert counted.operations == 2
        one.view(3, 1)
        one.unsqueeze(0)
        assert counted.operations == 2, "views are free"
    figures = count_transfers(SpeculativeDecoder(target, {}, PlainPolicy()), torch.tensor([5]), 4)
    assert figures["rounds"] == 3 and figures["operations"] > 10
    assert figures["reads"] == figures["uploads"] == 0, "nothing is far from the processor"
