"""Servers are measured block by block, their texts compared, and a soak tells what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import markdown
from benchmarks.serving import serving, soak
from benchmarks.serving.load import Answer, Request, run_clients
from benchmarks.serving.mixed import Delivery, Outcome, Wish
from benchmarks.serving.servers import Running, Server
from benchmarks.serving.serving import ServingArgs, measure
from benchmarks.serving.soak import SoakArgs, faults_of
from benchmarks.system.losslessness import NEAR_TIE
from draftgym.decoding.errors import DraftgymError
from tests.serving.clients.served import NAME, Tiny, make_tiny, serve
from tests.tiny_text import save_prompts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("models") / NAME)


@pytest.fixture
def args(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServingArgs:
    """Two numbers of clients, two policies, two repeats; the server is of this process."""

    @contextmanager
    def here(server: Server, log: Path) -> Iterator[Running]:
        with serve(tiny) as one:
            yield Running(server, one.address, None)  # type: ignore[arg-type]

    monkeypatch.setattr(serving, "running", here)
    return ServingArgs(
        json=tmp_path / "result.json",
        target=str(tiny.folder),
        prompts=str(save_prompts(tmp_path / "prompts.jsonl")),
        policies=("ngram:4",),
        clients=(1, 3),
        guards=("on",),
        requests_per_client=1,
        repeats=2,
        max_new_tokens=8,
        threads=1,
    )


@pytest.mark.slow
def test_every_policy_is_compared_with_plain_decoding_in_the_same_server(
    args: ServingArgs,
) -> None:
    result = measure(args)
    assert [(r["clients"], r["policy"], r["requests"]) for r in result["rows"]] == [
        (clients, policy, 16) for clients in (1, 3) for policy in ("plain", "ngram:4")
    ]
    for row in result["rows"]:
        assert row["same_texts"] == row["requests"] and not row["failed"]
        assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
        assert row["first_token_ms"]["p50"] <= row["first_token_ms"]["p95"]
    plain = [row for row in result["rows"] if row["policy"] == "plain"]
    assert all(row["accepted"] == 0 and row["ratio"]["value"] == 1 for row in plain)
    assert json.loads(args.json.read_text()) == result
    assert not any("text" in one for block in result["blocks"] for one in block["answers"])
    assert "| ngram:4 | 16 | 0 |" in markdown(args.json)


def test_a_killed_measurement_goes_on(args: ServingArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    args = replace(args, clients=(3,))

    def dies(url: str, requests: Sequence[Request], clients: int) -> Any:
        if len(requests) >= 8:  # no warm-up
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(clients)
        return run_clients(url, requests, clients)

    monkeypatch.setattr(serving, "run_clients", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(args)
    with pytest.raises(DraftgymError, match="started with other max_new_tokens"):
        measure(replace(args, max_new_tokens=9))
    written.clear()
    assert len(measure(args)["blocks"]) == 4
    assert len(written) == 1, "only what was missing is measured"


def test_a_text_that_differs_is_told_with_its_margin(
    args: ServingArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbled: list[str] = []

    def wrong(url: str, requests: Sequence[Request], clients: int) -> tuple[list[Answer], float]:
        answers, seconds = run_clients(url, requests, clients)
        own = requests[0].body["draftgym"]["policy"]
        if own == "ngram:4" and len(requests) >= 8 and not garbled:
            garbled.append(answers[2].name)
            answers[2].text = answers[2].text[:3] + "#" + answers[2].text[4:]
        return answers, seconds

    monkeypatch.setattr(serving, "run_clients", wrong)
    result = measure(replace(args, clients=(3,)))
    (difference,) = result["differences"]
    assert [difference["policy"], difference["name"]] == ["ngram:4", *garbled]
    assert difference["margin"] > NEAR_TIE
    assert sum(row["requests"] - row["same_texts"] for row in result["rows"]) == 1


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        ({"status": 200, "texts": {0: "ab"}, "reasons": {0: "stop"}}, "right"),
        ({"status": 200, "texts": {0: "ax"}, "reasons": {0: "stop"}}, "wrong"),
        ({"status": 200, "texts": {0: "a"}, "reasons": {0: "stop"}}, "wrong"),
        ({"status": 200, "texts": {0: "a"}}, "lost"),
        ({"status": 200, "texts": {0: "a"}, "left": True}, "left"),
        ({"status": 200, "texts": {0: "x"}, "left": True}, "wrong"),
        ({"status": 500, "error": "{}"}, "lost"),
        ({"status": 0, "error": "ReadError('')"}, "lost"),
        ({"status": 429, "error": "{}"}, "lost"),
    ],
)
def test_what_came_back_is_judged(outcome: dict[str, Any], verdict: str) -> None:
    wish = Wish("/v1/completions", {"prompt": "?"}, ("ab",))
    assert Outcome(Delivery(wish), **outcome).verdict == verdict


@pytest.mark.slow
def test_a_soak_of_seconds_finds_nothing_wrong(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "SAMPLE", 0.05)
    args = SoakArgs(
        target=str(tiny.folder),
        json=tmp_path / "soak.json",
        minutes=0.06,
        clients=4,
        wishes=8,
        longest=12,
        malformed=0.2,
        policies=("plain", "ngram:4"),
        threads=1,
    )
    result = soak.measure(args)
    # So short a run says nothing about memory.
    assert [fault for fault in faults_of(result) if not fault.startswith("memory")] == []
    assert result["verdicts"]["right"] > 0 and result["malformed"] > 0
    assert result["memory"]["early"] > 0


def test_memory_is_told_though_nobody_looked_for_a_while() -> None:
    log = soak.Log()
    log.memory += [(0.1, 100), (50.0, 130), (59.0, 140)]
    args = SoakArgs(minutes=1.0)  # windows: 6 to 18 s, 48 to 60 s
    memory = soak.summarise(args, log)["memory"]
    assert memory == {"early": 100.0, "late": 135.0, "growth": pytest.approx(0.35)}
