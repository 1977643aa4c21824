"""A client that leaves, in the middle of a stream or of a wait, takes its texts with it."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from draftgym.serving.batching.batcher import Batcher
from draftgym.serving.batching.requests import Event, Listener, NewTokens, TextRequest
from draftgym.serving.http.service import Limits
from tests.serving.clients.served import PATIENCE, Served, Tiny, serve
from tests.serving.http.test_mistakes_are_told_in_openais_shape import (
    CHAT,
    COMPLETE,
    error_of,
    usual,
)


class Held:
    """A batch that stops behind the first tokens of a text until it is let go.

    Attributes:
        reached: Whether it has stopped.
        release: Lets it go.
        left: Numbers of texts that were cancelled.
        submitted: Numbers of texts.
        heard: Whose events came, by their places among them.
    """

    def __init__(self, batcher: Batcher, patch: pytest.MonkeyPatch) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        self.submitted: list[int] = []
        self.left: list[int] = []
        self.heard: list[int] = []
        submit, cancel = batcher.submit, batcher.cancel

        def held_submit(request: TextRequest, listener: Listener) -> int:
            place = len(self.submitted)

            def listen(event: Event) -> None:
                self.heard.append(place)
                listener(event)
                if isinstance(event, NewTokens):
                    self.reached.set()
                    assert self.release.wait(PATIENCE)

            self.submitted.append(submit(request, listen))
            return self.submitted[-1]

        def seen_cancel(number: int) -> None:
            self.left.append(number)
            cancel(number)

        patch.setattr(batcher, "submit", held_submit)
        patch.setattr(batcher, "cancel", seen_cancel)


@pytest.fixture(scope="module")
def served(tiny: Tiny) -> Iterator[Served]:
    """A server with two places."""
    limits = Limits(ping_seconds=0.1)
    with serve(tiny, limits, most_running=2, most_waiting=4) as served:
        yield served


@pytest.fixture
def held(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(served.batcher, monkeypatch)
    yield held
    held.release.set()


def until(true: Callable[[], bool]) -> None:
    """Waits."""
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def ask(served: Served, path: str, asked: dict[str, Any]) -> socket.socket:
    """Sends a request and waits for nothing."""
    host, port = served.address.removeprefix("http://").split(":")
    body = json.dumps(usual(path) | {"max_tokens": 1800, "ignore_eos": True} | asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("texts", [1, 3])
def test_texts_end_with_their_client(
    served: Served, held: Held, path: str, stream: bool, texts: int
) -> None:
    connection = ask(served, path, {"stream": stream, "n": texts})
    assert held.reached.wait(PATIENCE)
    if stream:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()
    until(lambda: len(held.left) == texts)
    assert held.left == held.submitted
    held.release.set()
    until(lambda: not served.batcher.running and not served.batcher.waiting)
    until(lambda: not served.service.active)


def test_a_text_that_waits_is_forgotten_too(served: Served, held: Held) -> None:
    first = ask(served, CHAT, {"stream": True, "max_tokens": 2})
    assert held.reached.wait(PATIENCE)
    second = ask(served, CHAT, {"stream": True})
    until(lambda: len(held.submitted) == 2)
    second.close()
    until(lambda: held.left == held.submitted[1:])
    held.release.set()
    read = b""
    while b"data: [DONE]" not in read:
        read += first.recv(1000)
    first.close()
    until(lambda: not served.batcher.running and not served.batcher.waiting)
    assert set(held.heard) == {0}


def test_texts_that_do_not_all_find_a_place_leave_none(served: Served) -> None:
    with served.busy(waiting=2), httpx.Client(base_url=served.address, timeout=PATIENCE) as client:
        for stream in (False, True):
            asked = usual(COMPLETE) | {"n": 4, "stream": stream}
            answer = client.post(COMPLETE, json=asked)
            error = error_of(answer, 429)
            assert error["code"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
    until(lambda: not served.batcher.running and not served.batcher.waiting)


def test_a_stream_carries_comments_while_nothing_is_written(served: Served, held: Held) -> None:
    connection = ask(served, COMPLETE, {"stream": True, "max_tokens": 3})
    assert held.reached.wait(PATIENCE)
    read = b""
    while read.count(b": ping\n\n") < 3:
        read += connection.recv(1000)
    held.release.set()
    while b"data: [DONE]" not in read:
        read += connection.recv(1000)
    connection.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("stream", [False, True])
def test_nobody_waits_for_a_batch_that_has_died(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with serve(tiny, limits=Limits(ping_seconds=0.1), most_running=1) as served:
        monkeypatch.setattr(served.batcher, "step", sys.exit)
        asked = usual(CHAT) | {"stream": stream}
        answer = httpx.post(served.address + CHAT, json=asked, timeout=PATIENCE)
        if stream:
            assert '"code":"dead"' in answer.text and answer.text.endswith("data: [DONE]\n\n")
        else:
            assert error_of(answer, 503)["code"] == "dead"
        for path in ("/health", "/v1/models"):
            health = httpx.get(served.address + path, timeout=PATIENCE)
            assert health.status_code == (503 if path == "/health" else 200)


def test_a_text_that_fails_ends_its_stream_with_an_error(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(served.batcher, "_play", fail)
    with httpx.Client(base_url=served.address, timeout=PATIENCE) as client:
        asked = usual(CHAT) | {"max_tokens": 3}
        error = error_of(client.post(CHAT, json=asked), 500)
        assert "/secret" not in error["message"]
        answer = client.post(CHAT, json=asked | {"stream": True})
        lines = answer.text.split("\n\n")
        assert json.loads(lines[-3].removeprefix("data: "))["error"]["code"] == "internal_error"
        assert lines[-2] == "data: [DONE]" and "/secret" not in answer.text
        monkeypatch.undo()
        assert client.post(CHAT, json=asked).status_code == 200
