"""Which exception of openai's own library an error becomes, and when it asks again."""

from __future__ import annotations

import time
from typing import Any

import pytest

from draftgym.serving.http.service import Limits
from tests.serving.clients.served import NAME, PATIENCE, Served, Tiny, serve

HELLO = [{"role": "user", "content": "Hello"}]


def client_of(served: Served, **settings: Any) -> Any:
    import openai

    given = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE}
    return openai.OpenAI(base_url=served.v1, **given | settings)


def ask(client: Any, **changes: Any) -> Any:
    settings = {"model": NAME, "messages": HELLO, "temperature": 0, "max_completion_tokens": 5}
    return client.chat.completions.create(**settings | changes)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"max_completion_tokens": 10**6}, None),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"draftgym": {"policy": "/etc"}}}, None),
        ({"extra_body": {"stop": 5}}, "stop"),
    ],
)
def test_a_wrong_request_is_a_bad_request(
    served: Served, changes: dict[str, Any], param: str | None
) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as raised:
        ask(client_of(served), **changes)
    assert raised.value.type == "invalid_request_error"
    assert raised.value.body["message"] and raised.value.body["message"] in str(raised.value)
    assert param is None or raised.value.param == param


def test_a_prompt_beyond_the_context_has_openais_code(served: Served) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as raised:
        ask(client_of(served), messages=[{"role": "user", "content": "x" * 5000}])
    assert raised.value.code == "context_length_exceeded"


def test_another_model_and_another_path_are_not_found(served: Served) -> None:
    import openai

    client = client_of(served)
    with pytest.raises(openai.NotFoundError) as raised:
        ask(client, model="gpt-5")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input="text")


def test_a_missing_key_is_an_authentication_error(tiny: Tiny) -> None:
    import openai

    with serve(tiny, Limits(keys=("right", "other"))) as served:
        with pytest.raises(openai.AuthenticationError) as raised:
            ask(client_of(served, api_key="wrong"))
        assert raised.value.code == "invalid_api_key"
        assert ask(client_of(served, api_key="other")).choices


@pytest.mark.parametrize("streamed", [False, True])
def test_a_full_queue_is_a_rate_limit_error(tiny: Tiny, streamed: bool) -> None:
    import openai

    with serve(tiny, most_running=1, most_waiting=1) as served, served.busy(waiting=1):
        with pytest.raises(openai.RateLimitError) as raised:
            ask(client_of(served), stream=streamed)
        assert int(raised.value.response.headers["retry-after"]) >= 1


def test_a_loading_server_is_an_internal_server_error(tiny: Tiny) -> None:
    import openai

    with serve(tiny, loaded=False) as served:
        with pytest.raises(openai.InternalServerError) as raised:
            ask(client_of(served))
        assert raised.value.status_code == 503


class Watched:
    """A client that keeps when it asked and what it was answered.

    Args:
        served: Whom it asks.
        on_refusal: What is done when it is refused.
    """

    def __init__(self, served: Served, on_refusal: Any) -> None:
        import openai

        self.asked: list[float] = []
        self.answered: list[tuple[int, float, str | None]] = []
        self._on_refusal = on_refusal
        hooks = {"request": [self._request], "response": [self._response]}
        http = openai.DefaultHttpxClient(event_hooks=hooks)
        self.client = client_of(served, max_retries=3, http_client=http)

    def _request(self, request: Any) -> None:
        self.asked.append(time.monotonic())

    def _response(self, response: Any) -> None:
        after = response.headers.get("retry-after")
        self.answered.append((response.status_code, time.monotonic(), after))
        if response.status_code != 200:
            self._on_refusal()

    def check(self, status: int) -> None:
        """It was refused with a status, waited as long as it was told, and was served."""
        assert {one[0] for one in self.answered[:-1]} == {status}
        assert self.answered[-1][0] == 200
        for (_, refused, after), again in zip(self.answered, self.asked[1:], strict=False):
            assert after is not None and again - refused >= float(after) - 0.05


def test_a_refused_client_comes_back_when_it_was_told_to(tiny: Tiny) -> None:
    with serve(tiny, most_running=1, most_waiting=1) as served, served.busy(waiting=1) as release:
        watched = Watched(served, release.set)
        assert ask(watched.client).choices[0].finish_reason == "length"
    watched.check(429)


def test_a_client_of_a_loading_server_waits_for_the_model(tiny: Tiny) -> None:
    with serve(tiny, loaded=False) as served:
        watched = Watched(served, served.load)
        assert ask(watched.client).choices[0].finish_reason == "length"
    watched.check(503)
