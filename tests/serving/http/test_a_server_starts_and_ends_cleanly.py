"""`draftgym serve` from outside: loading, signals, kills, ports, and what it prints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.serving.http.main import ServeArgs
from draftgym.serving.http.naming import policy_name, public_name
from draftgym.serving.http.server import listen
from tests.serving.clients.served import PATIENCE, Tiny
from tests.serving.http.processes import ROOT, Running, Starter
from tests.serving.http.test_mistakes_are_told_in_openais_shape import CHAT, error_of, usual

EXACT = ("--dtype", "float32", "--threads", "1", "--policy", "ngram:4")


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Who starts them."""
    starter = Starter(tmp_path_factory.mktemp("servers"))
    yield starter
    starter.close()


def options(tiny: Tiny, port: int, *more: str) -> list[str]:
    return ["--target", str(tiny.folder), "--port", str(port), *EXACT, *more]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def client_of(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False)


def wait_for(client: httpx.Client, status: int, running: Running) -> httpx.Response:
    """Waits until the server's health is that."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        try:
            answer = client.get("/health")
            if answer.status_code == status:
                return answer
        except httpx.TransportError:
            assert not running.ended.is_set(), running.said()
        time.sleep(0.02)
    raise AssertionError(f"health was never {status}")


class SlowReader:
    """A client whose stream is far larger than what lies between it and the server.

    The server cannot end it before it reads on: small segments keep the system's buffers small.
    """

    def __init__(self, port: int) -> None:
        asked = {"max_tokens": 300, "ignore_eos": True, "n": 4, "stream": True}
        asked |= {"logprobs": True, "top_logprobs": 20}
        body = json.dumps(usual(CHAT) | asked).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self.connection = socket.socket()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.connection.settimeout(PATIENCE)
        self.connection.connect(("127.0.0.1", port))
        self.connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert self.connection.recv(20).startswith(b"HTTP/1.1 200")

    def rest(self) -> bytes:
        """The end of the stream."""
        last = b""
        while part := self.connection.recv(1 << 16):
            last = (last + part)[-1000:]
            if b"data: [DONE]" in last:
                break
        return last


@pytest.mark.slow
def test_a_term_lets_running_requests_end_and_takes_no_others(tiny: Tiny, starter: Starter) -> None:
    port = free_port()
    with starter.server(options(tiny, port)) as running, client_of(port) as client:
        wait_for(client, 200, running)
        reader = SlowReader(port)
        running.send_signal(signal.SIGTERM)
        health = wait_for(client, 503, running)
        assert error_of(health, 503)["code"] == "draining"
        refused = client.post(CHAT, json=usual(CHAT))
        assert error_of(refused, 503)["code"] == "draining"
        assert refused.headers["connection"] == "close" and refused.headers["retry-after"]
        assert not running.ended.is_set()
        assert b"data: [DONE]" in reader.rest()
        assert running.wait() == 0
        assert "Traceback" not in running.said()


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
def test_a_second_signal_or_the_time_limit_ends_at_once(
    tiny: Tiny, starter: Starter, again: bool
) -> None:
    port = free_port()
    told = options(tiny, port, "--drain-seconds", "3600" if again else "0.5")
    with starter.server(told) as running, client_of(port) as client:
        wait_for(client, 200, running)
        reader = SlowReader(port)
        running.send_signal(signal.SIGTERM)
        if again:
            wait_for(client, 503, running)
            running.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        reader.connection.close()


def test_a_server_that_was_killed_starts_again_at_its_port(tiny: Tiny, starter: Starter) -> None:
    port = free_port()
    texts = []
    for _ in range(2):
        with starter.server(options(tiny, port)) as running, client_of(port) as client:
            wait_for(client, 200, running)
            asked = usual(CHAT) | {"max_tokens": 30, "seed": 3}
            answer = client.post(CHAT, json=asked)
            texts.append(answer.json()["choices"][0]["message"]["content"])
            reader = SlowReader(port)
            running.send_signal(signal.SIGKILL)
            assert running.wait() == -signal.SIGKILL
            reader.connection.close()
    assert texts[0] == texts[1]


SLOW = """
import pathlib, time
from draftgym.drafters.ngram.drafter import NgramDrafter

def made(target):
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    return NgramDrafter()
"""
"""A drafter of the user's own that takes as long to load as a test likes."""


@pytest.mark.parametrize("told", [False, True])
def test_a_server_listens_while_it_loads_and_ends_when_it_is_told(
    tiny: Tiny, starter: Starter, tmp_path: Path, told: bool
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    port = free_port()
    with (
        starter.server(options(tiny, port, "--drafters", "slow:made"), tmp_path) as running,
        client_of(port) as client,
    ):
        answer = wait_for(client, 503, running)
        assert error_of(answer, 503)["code"] == "loading"
        assert answer.headers["retry-after"]
        assert error_of(client.post(CHAT, json=usual(CHAT)), 503)["code"] == "loading"
        assert client.get("/").status_code == 200
        if not told:
            (tmp_path / "go").touch()
            wait_for(client, 200, running)
            assert client.post(CHAT, json=usual(CHAT) | {"max_tokens": 2}).status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0


@pytest.mark.slow
def test_it_says_where_it_is_what_it_serves_and_how_to_ask(tiny: Tiny, tmp_path: Path) -> None:
    """In a process that begins with nothing, as a user's does."""
    told = options(tiny, 0, "--policies", "fast=ngram:8")
    with subprocess.Popen(
        [sys.executable, str(ROOT / "serve.py"), *told],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    ) as running:
        assert running.stdout is not None
        said = ""
        for line in running.stdout:
            said += line
            if "Python:" in line:
                break
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == 0
    assert "my-tiny, policy ngram:4 (others: fast, plain)" in said
    (address,) = {word.strip(":") for word in said.split() if word.startswith("http://127")} - {
        word for word in said.split() if word.endswith(("/", "completions"))
    }
    assert f"curl {address}/v1/chat/completions" in said and f'base_url="{address}/v1"' in said


def fails(starter: Starter, told: list[str]) -> str:
    """What a server says that cannot start."""
    with starter.server(told) as running:
        assert running.wait() == 2, running.said()
    said = running.said()
    assert "Traceback" not in said and "remedy:" in said
    return said


def test_a_port_that_is_taken_is_named(tiny: Tiny, starter: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        said = fails(starter, options(tiny, port))
    assert f"port {port}" in said and "--port" in said


def test_a_model_that_cannot_be_loaded_ends_the_process(tiny: Tiny, starter: Starter) -> None:
    said = fails(starter, options(tiny, 0, "--policies", "x=eagle3:3"))
    assert "eagle3" in said


@pytest.mark.slow
def test_without_the_extra_it_says_what_to_install(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from draftgym.serving.http.main import main\n"
        "from draftgym.decoding.errors import exit_on_user_error\n"
        f"with exit_on_user_error(): main(['--target', {str(tiny.folder)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT
    )
    assert done.returncode == 2 and "pip install 'draftgym[serve]'" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"host": "no such host"},
        {"max_running": 0},
        {"cache_gb": float("nan")},
        {"drain_seconds": -1.0},
        {"policies": ("eagle3:3",)},
        {"policies": ("=plain",)},
        {"api_key": ("é",)},
        {"target": "no-such-model"},
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(
    tiny: Tiny, wrong: dict[str, Any]
) -> None:
    with pytest.raises(DraftgymError) as caught:
        args = ServeArgs(**{"target": str(tiny.folder), **wrong})
        args.check()
        listen(args.host, args.port)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("smollm2-135m:int8", "smollm2-135m:int8"),
        ("/home/me/models/mine", "mine"),
        ("/home/me/models/mine/:q4", "mine:q4"),
        ("owner/name", "name"),
        ("files/one.gguf", "one.gguf"),
    ],
)
def test_a_name_outside_is_no_path(name: str, public: str) -> None:
    assert public_name(name) == public


@pytest.mark.parametrize(
    ("spec", "public"),
    [("eagle3:3x6", "eagle3:3x6"), ("runs/router/policy", "policy"), ("ngram:8>router",) * 2],
)
def test_a_policys_name_is_no_path(spec: str, public: str) -> None:
    assert policy_name(spec) == public
