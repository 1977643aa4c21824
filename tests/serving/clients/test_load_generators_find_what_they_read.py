"""The requests of guidellm 0.8.1 and of `vllm bench serve`, and every field that they read.

They are replayed, not run: guidellm wants an older click than the one that is pinned here, and
vLLM is no package for this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.serving.clients.served import NAME, PATIENCE, Served

TEXT = "Number 7 of all"
TOKENS = 24
USAGE = {"include_usage": True}
OFTEN = {"include_usage": True, "continuous_usage_stats": True}
COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
PARTS = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
RUN_ON = {"model": NAME, "ignore_eos": True, "temperature": 0}

GUIDELLM = {
    COMPLETION: RUN_ON | {"prompt": TEXT, "max_tokens": TOKENS},
    CHAT: RUN_ON | {"messages": PARTS, "max_completion_tokens": TOKENS},
}
VLLM = {
    COMPLETION: RUN_ON
    | {"prompt": TEXT, "max_tokens": TOKENS, "repetition_penalty": 1.0, "logprobs": None},
    CHAT: RUN_ON | {"messages": PARTS, "max_completion_tokens": TOKENS},
}


def lines_of(served: Served, path: str, body: Mapping[str, Any]) -> list[str]:
    """What a stream says, line by line, without blank ones."""
    with httpx.stream("POST", served.address + path, json=body, timeout=PATIENCE) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line for line in answer.iter_lines() if line]


def chunks_of(lines: list[str]) -> list[dict[str, Any]]:
    """The chunks, of which the last line is no part."""
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1] if line[0] != ":"]


def said(choice: Mapping[str, Any]) -> str:
    """What a choice of a chunk adds."""
    return (choice["text"] if "text" in choice else choice["delta"].get("content")) or ""


def prompt_of(served: Served, path: str) -> list[int]:
    if path == COMPLETION:
        return served.tiny.ids(TEXT)
    return served.tiny.chat([{"role": "user", "content": TEXT}])


def check_end(served: Served, path: str, answer: Mapping[str, Any]) -> None:
    """The usage, and what vLLM tells beside it."""
    prompt = len(prompt_of(served, path))
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, TOKENS)
    assert usage["prompt_tokens_details"]["cached_tokens"] in range(prompt)
    told = answer["metrics"]["speculative_decoding"]
    accepted, drafted = told["num_accepted_draft_tokens"], told["num_draft_tokens"]
    assert 0 <= accepted <= drafted and told["num_spec_steps"] <= TOKENS
    assert told["draft_acceptance_rate"] == pytest.approx(accepted / max(drafted, 1))
    steps = max(told["num_spec_steps"], 1)
    assert told["mean_acceptance_length"] == pytest.approx(1 + accepted / steps)


@pytest.fixture(scope="module")
def expected(served: Served) -> dict[str, str]:
    """What transformers writes, whether or not it would rather end."""
    return {
        path: served.tiny.greedy(prompt_of(served, path), TOKENS, runs_on=True)
        for path in (COMPLETION, CHAT)
    }


def test_guidellm_finds_the_server(served: Served) -> None:
    assert httpx.get(f"{served.address}/health", timeout=PATIENCE).status_code == 200
    listed = httpx.get(f"{served.v1}/models", timeout=PATIENCE).json()
    assert [one["id"] for one in listed["data"]] == [NAME]


@pytest.mark.parametrize("path", [COMPLETION, CHAT])
def test_guidellm_reads_a_stream(served: Served, expected: dict[str, str], path: str) -> None:
    body = GUIDELLM[path] | {"stream": True, "stream_options": OFTEN}
    *parts, last = chunks_of(lines_of(served, path, body))
    assert "".join(said(one["choices"][0]) for one in parts) == expected[path]
    assert last["choices"] == [] and len({one["id"] for one in [*parts, last]}) == 1
    counts = [one["usage"]["completion_tokens"] for one in parts]
    assert counts == sorted(counts) and counts[-1] == TOKENS
    check_end(served, path, last)


@pytest.mark.parametrize("path", [COMPLETION, CHAT])
def test_guidellm_reads_a_whole_answer(served: Served, expected: dict[str, str], path: str) -> None:
    answer = httpx.post(served.address + path, json=GUIDELLM[path], timeout=PATIENCE).json()
    (choice,) = answer["choices"]
    told = choice["text"] if path == COMPLETION else choice["message"]["content"]
    assert told == expected[path] and answer["id"]
    check_end(served, path, answer)


@pytest.mark.parametrize("path", [COMPLETION, CHAT])
def test_vllm_bench_times_tokens_alone(served: Served, expected: dict[str, str], path: str) -> None:
    body = VLLM[path] | {"stream": True, "stream_options": USAGE}
    *parts, last = chunks_of(lines_of(served, path, body))
    assert "".join(said(one["choices"][0]) for one in parts) == expected[path]
    assert not last["choices"]  # else it would be taken for a token
    check_end(served, path, last)


def test_an_error_is_a_status_and_a_message(served: Served) -> None:
    body = GUIDELLM[COMPLETION] | {"max_tokens": 10**6, "stream": True}
    answer = httpx.post(served.address + COMPLETION, json=body, timeout=PATIENCE)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_an_error_in_a_stream_is_told_before_its_end(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from draftgym.serving.batching.requests import Failed, PromptRead

    def fail(request: Any, listener: Any) -> int:
        listener(PromptRead())
        listener(Failed("there is no memory", is_ours=True))
        return 0

    monkeypatch.setattr(served.batcher, "submit", fail)
    body = GUIDELLM[COMPLETION] | {"stream": True, "stream_options": OFTEN}
    *_, failed, done = lines_of(served, COMPLETION, body)
    assert json.loads(failed.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"
