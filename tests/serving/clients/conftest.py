"""One tiny model and one server for all clients, which may ask nobody but that server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.clients.served import Served, Tiny, make_tiny, serve

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "127.0.0.1",
}
HERE = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="package", autouse=True)
def nobody_else_is_asked() -> Iterator[None]:
    """Clients do without telemetry, tables from the network and proxies."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Hosts that a test asked for beside this one; there must be none."""
    asked: list[str] = []
    connect, find = socket.socket.connect, socket.getaddrinfo

    def watched(self: socket.socket, address: Any) -> Any:
        check(address[0] if self.family in (socket.AF_INET, socket.AF_INET6) else HERE[0])
        return connect(self, address)

    def watched_find(host: Any, *arguments: Any, **options: Any) -> Any:
        check(host.decode() if isinstance(host, bytes) else host or HERE[0])
        return find(host, *arguments, **options)

    def check(host: str) -> None:
        if host not in HERE:
            asked.append(host)
            raise OSError(f"a test asks for {host}")

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(socket, "getaddrinfo", watched_find)
    yield asked
    assert asked == []


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The model."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="package")
def served(tiny: Tiny, nobody_else_is_asked: None) -> Iterator[Served]:
    """The server."""
    with serve(tiny) as server:
        yield server
