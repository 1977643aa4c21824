"""Whatever is wrong with a request, its answer is an error of OpenAI's API: never 422 or 500."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from draftgym.serving.http.api.schema import ChatBody, CompletionBody, DetokenizeBody
from tests.serving.clients.served import PATIENCE

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
SAID = {"messages": [{"role": "user", "content": "hi"}]}
CONTEXT = "context_length_exceeded"

# Endpoint, what is asked beside the usual, status, and the field that is named.
WRONG: list[tuple[str, dict[str, Any], int, str | None]] = [
    (COMPLETE, {"prompt": None}, 400, "prompt"),
    (COMPLETE, {"prompt": []}, 400, "prompt"),
    (COMPLETE, {"prompt": [[]]}, 400, "prompt"),
    (COMPLETE, {"prompt": [["a"]]}, 400, "prompt"),
    (COMPLETE, {"prompt": [-1]}, 400, "prompt"),
    (COMPLETE, {"prompt": [1.5]}, 400, "prompt"),
    (COMPLETE, {"prompt": [True]}, 400, "prompt"),
    (COMPLETE, {"prompt": [10**30]}, 400, "prompt"),
    (COMPLETE, {"prompt": [300]}, 400, None),
    (COMPLETE, {"prompt": ""}, 400, None),
    (COMPLETE, {"prompt": "\ud800"}, 400, "prompt"),
    (COMPLETE, {"prompt": "x" * 3000}, 400, "prompt"),
    (COMPLETE, {"prompt": "x" * 150_000}, 400, "prompt"),
    (COMPLETE, {"prompt": ["x"] * 60, "n": 3}, 400, "prompt"),
    (COMPLETE, {"max_tokens": -1}, 400, "max_tokens"),
    (COMPLETE, {"max_tokens": "many"}, 400, "max_tokens"),
    (COMPLETE, {"max_tokens": 1501}, 400, "max_tokens"),
    (COMPLETE, {"max_tokens": 10**400}, 400, "max_tokens"),
    (COMPLETE, {"temperature": -0.1}, 400, "temperature"),
    (COMPLETE, {"temperature": 2.1}, 400, "temperature"),
    (COMPLETE, {"temperature": float("nan")}, 400, "temperature"),
    (COMPLETE, {"temperature": float("inf")}, 400, "temperature"),
    (COMPLETE, {"top_p": 0}, 400, "top_p"),
    (COMPLETE, {"top_p": 1.1}, 400, "top_p"),
    (COMPLETE, {"top_k": -2}, 400, "top_k"),
    (COMPLETE, {"min_p": 2}, 400, "min_p"),
    (COMPLETE, {"repetition_penalty": 0}, 400, "repetition_penalty"),
    (COMPLETE, {"n": 0}, 400, "n"),
    (COMPLETE, {"n": 17}, 400, "n"),
    (COMPLETE, {"best_of": 2}, 400, "best_of"),
    (COMPLETE, {"logprobs": 21}, 400, "logprobs"),
    (COMPLETE, {"suffix": "and so on"}, 400, "suffix"),
    (COMPLETE, {"presence_penalty": 0.5}, 400, "presence_penalty"),
    (COMPLETE, {"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    (COMPLETE, {"logit_bias": {"5": 1}}, 400, "logit_bias"),
    (COMPLETE, {"seed": 2**64}, 400, "seed"),
    (COMPLETE, {"seed": "x"}, 400, "seed"),
    (COMPLETE, {"stop": ["x"] * 17}, 400, "stop"),
    (COMPLETE, {"stop": ""}, 400, "stop"),
    (COMPLETE, {"stop": ["\udcff"]}, 400, "stop"),
    (COMPLETE, {"stop": 5}, 400, "stop"),
    (COMPLETE, {"stop_token_ids": [300]}, 400, None),
    (COMPLETE, {"stream": "perhaps"}, 400, "stream"),
    (COMPLETE, {"stream_options": 3}, 400, "stream_options"),
    (COMPLETE, {"model": "gpt-4"}, 404, "model"),
    (COMPLETE, {"draftgym": {"policy": "eagle4"}}, 400, None),
    (COMPLETE, {"draftgym": {"policy": "eagle3:many"}}, 400, None),
    (COMPLETE, {"draftgym": {"policy": "/etc"}}, 400, None),
    (COMPLETE, {"draftgym": {"policy": "checkpoints"}}, 400, None),
    (COMPLETE, {"draftgym": {"policy": "ngram:16>../secret"}}, 400, None),
    (COMPLETE, {"draftgym": {"policy": "router"}}, 400, None),
    (COMPLETE, {"draftgym": {"policy": "ucb-time"}}, 400, None),
    (COMPLETE, {"draftgym": {"policy": "é" * 200}}, 400, "draftgym"),
    (COMPLETE, {"draftgym": {"max_draft": -1}}, 400, "draftgym"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": "hi"}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, None),
    (CHAT, {"messages": [{"content": "hi"}]}, 400, "messages"),
    (CHAT, {"messages": [{"role": "king", "content": "hi"}]}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}, 400, None),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 3000}]}, 400, "messages"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages",
    ),
    (CHAT, {"max_completion_tokens": 10**6}, 400, "max_tokens"),
    (CHAT, {"top_logprobs": 3}, 400, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    (CHAT, {"response_format": {"type": "json_object"}}, 400, "response_format"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "tools"),
    (CHAT, {"tool_choice": "required"}, 400, "tool_choice"),
    (CHAT, {"functions": [{}]}, 400, "functions"),
    (CHAT, {"modalities": ["audio"]}, 400, "modalities"),
    (CHAT, {"audio": {"voice": "x"}}, 400, "audio"),
    (CHAT, {"chat_template_kwargs": {"chat_template": "x"}}, 400, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"no_such_option": 1}}, 400, None),
    (CHAT, {"prediction": {"type": "content", "content": [{"type": "image"}]}}, 400, "prediction"),
    (CHAT, {"prediction": "text"}, 400, "prediction"),
    ("/tokenize", {"prompt": None}, 400, "prompt"),
    ("/tokenize", {"prompt": "x", **SAID}, 400, "prompt"),
    ("/tokenize", {"prompt": 5}, 400, "prompt"),
    ("/detokenize", {"tokens": [300]}, 400, "tokens"),
    ("/detokenize", {"tokens": "x"}, 400, "tokens"),
]


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error in an answer."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["type"].endswith("_error")
    return error


def usual(path: str) -> dict[str, Any]:
    """What a request to an endpoint says that is right."""
    return {CHAT: SAID, COMPLETE: {"prompt": "hi"}}.get(path, {})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "asked", "status", "param"), WRONG)
def test_a_wrong_field_is_named(
    client: httpx.Client,
    folder: Path,
    path: str,
    asked: dict[str, Any],
    status: int,
    param: str | None,
    stream: bool,
) -> None:
    body = json.dumps(usual(path) | {"stream": stream} | asked)
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    error = error_of(answer, status)
    assert error["param"] == param
    assert str(folder) not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": "x", "seed": ' + b"9" * 9000 + b"}",
    ],
)
def test_what_is_no_request_is_refused(client: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in (CHAT, COMPLETE, "/tokenize", "/detokenize"):
        error_of(client.post(path, content=body, headers=headers), 400)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (CompletionBody, {"prompt": [1.5] * 10_000}),
        (CompletionBody, {"prompt": ["x"] * 10_000}),
        (CompletionBody, {"prompt": [[1.5]] * 10_000}),
        (CompletionBody, {"prompt": "x", "stop": [1] * 10_000}),
        (ChatBody, {"messages": [{}] * 10_000}),
        (ChatBody, {"messages": [{"role": "user", "content": [1] * 10_000}]}),
        (ChatBody, SAID | {"chat_template_kwargs": {str(n): n for n in range(10_000)}}),
        (DetokenizeBody, {"tokens": ["x"] * 10_000}),
    ],
)
def test_thousands_of_wrong_items_are_a_handful_of_errors(
    kind: type[BaseModel], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(wrong)
    assert caught.value.error_count() <= 4


def test_a_body_that_is_not_called_json_is_told_so(client: httpx.Client) -> None:
    error = error_of(client.post(COMPLETE, content=b'{"prompt": "x"}'), 400)
    assert "Content-Type" in error["message"]


def test_a_text_that_does_not_fit_has_its_code(client: httpx.Client) -> None:
    for prompt in ("x" * 3000, "x" * 150_000):
        answer = client.post(COMPLETE, json={"prompt": prompt})
        assert error_of(answer, 400)["code"] == CONTEXT


def test_another_model_has_its_code(client: httpx.Client) -> None:
    assert error_of(client.get("/v1/models/gpt-4"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/models/", "/page/nothing", "/docs"])
def test_what_is_not_there_is_told(client: httpx.Client, path: str) -> None:
    error_of(client.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", CHAT), ("PUT", COMPLETE), ("POST", "/health"), ("POST", "/")]
)
def test_other_methods_are_refused(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    error_of(answer, 405)
    assert answer.headers["allow"]


def test_a_strange_host_is_no_fault_of_the_server(client: httpx.Client) -> None:
    error_of(client.get("/nothing", headers={"Host": "[nowhere"}), 404)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(client: httpx.Client, chunked: bool) -> None:
    body = json.dumps({"prompt": "x" * 300_000}).encode()
    parts = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    headers = {"Content-Type": "application/json"}
    answer = client.post(COMPLETE, content=parts if chunked else body, headers=headers)
    assert error_of(answer, 413)["code"] == "request_too_large"


@pytest.mark.parametrize(
    "asked",
    [
        {"n": None, "stop": None, "seed": None, "stream": None, "logprobs": None, "user": None},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "suffix": ""},
        {"best_of": 1, "stop": [], "top_k": -1, "top_p": 1, "min_p": 0, "temperature": 1e-9},
        {"no_such_field": [1, {"a": 2}], "draftgym": {"no_such_field": 1}},
        {"seed": -5},
        {"draftgym": {"policy": "lookup"}},
        {"draftgym": {"policy": "plain", "max_draft": 0}},
        {"draftgym": {"policy": "by-batch@1=eagle3:2,3=plain"}},
        {"draftgym": {"policy": "ngram:8>eagle3:2"}},
        {"draftgym": {"policy": "random@eagle3:2,ngram:4,plain"}},
    ],
)
def test_what_asks_for_nothing_special_is_served(
    client: httpx.Client, asked: dict[str, Any]
) -> None:
    for path in (CHAT, COMPLETE):
        asked = {**asked, "logprobs": None}
        answer = client.post(path, json=usual(path) | {"max_tokens": 3} | asked)
        assert answer.status_code == 200, answer.text


def test_no_answer_tells_of_the_host(client: httpx.Client, folder: Path) -> None:
    for path in ("/v1/models", "/tokenizer_info", "/health", "/openapi.json", "/", "/metrics"):
        assert str(folder) not in client.get(path).text
    for path in (CHAT, COMPLETE):
        asked = {"max_tokens": 3, "draftgym": {"details": True}}
        answer = client.post(path, json=usual(path) | asked)
        assert answer.status_code == 200 and str(folder) not in answer.text


def test_who_asks_before_sending_too_much_is_told_at_once(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = f"POST {COMPLETE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
