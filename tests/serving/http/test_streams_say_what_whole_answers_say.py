"""A stream is the whole answer in pieces, in the conventions that clients rely on."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serving.clients.served import Tiny
from tests.serving.http.streams import stream, text_of
from tests.serving.http.test_mistakes_are_told_in_openais_shape import CHAT, COMPLETE, usual

LONG = {"max_tokens": 40, "temperature": 0.8, "seed": 7}
PATHS = [CHAT, COMPLETE]


def texts_of(answer: dict[str, Any]) -> list[str]:
    """The texts of a whole answer."""
    ordered = sorted(answer["choices"], key=lambda one: one["index"])
    return [one["text"] if "text" in one else one["message"]["content"] for one in ordered]


def whole(client: httpx.Client, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=usual(path) | asked)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"n": 3}, {"ignore_eos": True}])
def test_the_pieces_are_the_text(client: httpx.Client, path: str, more: dict[str, Any]) -> None:
    asked = usual(path) | LONG | more
    told = whole(client, path, asked)
    chunks = stream(client, path, asked)
    assert [text_of(chunks, at) for at in range(more.get("n", 1))] == texts_of(told)
    ends = {one["index"]: one["finish_reason"] for c in chunks for one in c["choices"]}
    assert ends == {one["index"]: one["finish_reason"] for one in told["choices"]}


@pytest.mark.parametrize("path", PATHS)
def test_only_the_last_chunk_of_a_choice_says_why_it_ended(client: httpx.Client, path: str) -> None:
    chunks = stream(client, path, usual(path) | LONG | {"n": 2})
    for index in range(2):
        choices = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        assert [one["finish_reason"] for one in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] in ("stop", "length")
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_a_chat_begins_with_its_role(client: httpx.Client) -> None:
    chunks = stream(client, CHAT, usual(CHAT) | LONG | {"n": 2})
    for index in range(2):
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["index"] == index]
        assert deltas[0]["role"] == "assistant" and deltas[0]["content"] == ""
        assert not any("role" in delta for delta in deltas[1:])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.parametrize("path", PATHS)
def test_the_usage_comes_last_and_without_choices(client: httpx.Client, path: str) -> None:
    asked = usual(path) | LONG
    chunks = stream(client, path, asked | {"stream_options": {"include_usage": True}})
    assert chunks[-1]["choices"] == []
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    told = whole(client, path, asked)
    counts = ("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details")
    for name in counts:
        assert chunks[-1]["usage"][name] == told["usage"][name]
    assert chunks[-1]["metrics"]["speculative_decoding"] == told["metrics"]["speculative_decoding"]


def test_usage_can_be_told_with_every_chunk(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(client, COMPLETE, usual(COMPLETE) | LONG | {"stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == counts[-2] <= 40


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("policy", ["plain", "eagle3:3"])
def test_a_stop_string_is_never_shown_wherever_chunks_end(
    client: httpx.Client, path: str, policy: str
) -> None:
    asked = usual(path) | LONG | {"ignore_eos": True, "draftgym": {"policy": policy}}
    (text,) = texts_of(whole(client, path, asked))
    for length in (1, 2, 4):
        stops = [text[at : at + length] for at in range(len(text) - length)]
        readable = [stop for stop in stops if stop.isascii() and stop.isprintable()]
        for stop in (readable[0], readable[len(readable) // 2], readable[-1]):
            chunks = stream(client, path, asked | {"stop": [stop, "never said"]})
            assert text_of(chunks) == text[: text.find(stop)]
            last = chunks[-1]["choices"][0]
            assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


def test_a_stop_token_is_no_part_of_the_text(client: httpx.Client, tiny: Tiny) -> None:
    asked = usual(COMPLETE) | LONG | {"ignore_eos": True}
    (text,) = texts_of(whole(client, COMPLETE, asked))
    letter = [one for one in text if one.isalpha() and one.isascii()][5]
    (token,) = tiny.ids(letter)
    told = whole(client, COMPLETE, asked | {"stop_token_ids": [token]})
    assert texts_of(told) == [text[: text.find(letter)]]
    assert told["choices"][0]["stop_reason"] == token
    assert told["usage"]["completion_tokens"] > text.find(letter)
    chunks = stream(client, COMPLETE, asked | {"stop_token_ids": [token]})
    assert text_of(chunks) == text[: text.find(letter)]


def test_the_models_own_end_is_not_shown(client: httpx.Client, tiny: Tiny) -> None:
    end = tiny.tokenizer.eos_token_id
    for seed in range(40):
        asked = {"prompt": "hi", "max_tokens": 300, "seed": seed, "logprobs": 0}
        told = whole(client, COMPLETE, asked)
        if told["choices"][0]["finish_reason"] == "stop":
            break
    else:
        pytest.fail("no text ended by itself")
    choice = told["choices"][0]
    assert choice["stop_reason"] is None and "<end>" not in choice["text"]
    assert choice["logprobs"]["tokens"][-1] == tiny.tokenizer.decode([end])
    assert told["usage"]["completion_tokens"] == len(choice["logprobs"]["tokens"])


@pytest.mark.parametrize("path", PATHS)
def test_details_tell_who_drafted_every_token(client: httpx.Client, path: str) -> None:
    asked = usual(path) | LONG | {"temperature": 0, "draftgym": {"details": True}}
    asked |= {"stream_options": {"include_usage": True}}
    chunks = stream(client, path, asked)
    rounds = [c["draftgym"] for c in chunks if c["choices"] and "pieces" in c["draftgym"]]
    assert "".join(p["text"] for one in rounds for p in one["pieces"]) == text_of(chunks)
    drafted = sum(piece["drafted"] for one in rounds for piece in one["pieces"])
    usage = chunks[-1]["usage"]
    accepted = usage["completion_tokens_details"]["accepted_prediction_tokens"]
    assert drafted == accepted > 0
    totals = chunks[-1]["draftgym"]
    assert totals["accepted"] == drafted and totals["tokens"] == usage["completion_tokens"]
    assert set(totals["arms"]) <= {"plain", "eagle3:3", "eagle3:2", "eagle3:1"}
    told = whole(client, path, asked)
    assert told["draftgym"]["arms"] == totals["arms"]
    pieces = [p for one in told["choices"][0]["draftgym"]["rounds"] for p in one["pieces"]]
    assert "".join(piece["text"] for piece in pieces) == text_of(chunks)


def test_logprobs_of_a_stream_are_those_of_the_whole(client: httpx.Client) -> None:
    asked = usual(COMPLETE) | LONG | {"logprobs": 3, "echo": True}
    told = whole(client, COMPLETE, asked)["choices"][0]["logprobs"]
    parts = [c["choices"][0]["logprobs"] for c in stream(client, COMPLETE, asked)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [one for part in parts if part for one in part[name]]
        if name == "token_logprobs":
            assert joined[0] is None
            assert joined[1:] == pytest.approx(told[name][1:], abs=1e-4)
        elif name != "top_logprobs":
            assert joined == told[name]
    asked = usual(CHAT) | LONG | {"logprobs": True, "top_logprobs": 2}
    content = whole(client, CHAT, asked)["choices"][0]["logprobs"]["content"]
    parts = [c["choices"][0]["logprobs"] for c in stream(client, CHAT, asked)]
    streamed = [one for part in parts if part for one in part["content"]]
    assert [one["token"] for one in streamed] == [one["token"] for one in content]
    assert all(len(one["top_logprobs"]) == 2 for one in content)
    assert bytes(byte for one in content for byte in one["bytes"])
