"""API keys: any of several opens the server, nothing else does; health and page need none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from draftgym.serving.http.app import make_app
from draftgym.serving.http.main import KEY_VARIABLE, ServeArgs
from draftgym.serving.http.service import Service
from tests.serving.clients.served import PATIENCE
from tests.serving.http.test_mistakes_are_told_in_openais_shape import COMPLETE, error_of
from tests.serving.scripted import running

KEYS = ("one-key", "another")


@pytest.fixture(scope="module")
def closed(service: Service) -> Iterator[httpx.Client]:
    """A server that asks for keys."""
    guarded = Service(service.name, replace(service.limits, keys=KEYS))
    guarded.serve(service.model)
    with (
        running(make_app(guarded)) as address,
        httpx.Client(base_url=address, timeout=PATIENCE, trust_env=False) as client,
    ):
        yield client


def asked(client: httpx.Client, path: str, authorization: str | None) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    if path.startswith("/v1/models"):
        return client.get(path, headers=headers)
    return client.post(path, json={"prompt": "hi", "max_tokens": 1}, headers=headers)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("path", [COMPLETE, "/v1/models", "/tokenize"])
def test_each_key_opens(closed: httpx.Client, key: str, path: str) -> None:
    assert asked(closed, path, f"Bearer {key}").status_code == 200


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer one-ke", "one-key", "Basic one-key", "Bearer é"],
)
@pytest.mark.parametrize("path", [COMPLETE, "/v1/models", "/tokenize", "/nothing"])
def test_nothing_else_does(closed: httpx.Client, given: str | None, path: str) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    error = error_of(closed.post(path, content=b"{", headers=headers), 401)
    assert error["code"] == "invalid_api_key"


def test_who_sends_much_without_a_key_is_told(closed: httpx.Client) -> None:
    for size in (150_000, 2_000_000):
        error_of(closed.post(COMPLETE, content=b"x" * size), 401)


def test_health_and_page_are_open(closed: httpx.Client) -> None:
    for path in ("/", "/health", "/page/page.js"):
        assert closed.get(path).status_code == 200


def test_keys_come_from_options_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "from-outside")
    assert ServeArgs(api_key=("given",)).keys == ("given", "from-outside")
    monkeypatch.delenv(KEY_VARIABLE)
    assert ServeArgs().keys == ()
