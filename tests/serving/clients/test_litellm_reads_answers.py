"""What litellm, unmodified, makes of the server's answers and errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from draftgym.serving.http.service import Limits
from tests.serving.clients.served import NAME, PATIENCE, Served, Tiny, serve

HELLO = [{"role": "user", "content": "Good morning."}]


def settings_of(served: Served, **changes: Any) -> dict[str, Any]:
    settings = {"model": f"openai/{NAME}", "messages": HELLO, "temperature": 0, "max_tokens": 30}
    own = {"api_base": served.v1, "api_key": "none", "timeout": PATIENCE, "max_retries": 0}
    return settings | own | changes


def ask(served: Served, **changes: Any) -> Any:
    import litellm

    return litellm.completion(**settings_of(served, **changes))


@pytest.fixture(scope="module")
def answer(served: Served) -> str:
    return served.tiny.greedy(served.tiny.chat(HELLO), 30)


def check_usage(served: Served, usage: Any) -> None:
    prompt = len(served.tiny.chat(HELLO))
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, 30)
    assert usage.total_tokens == prompt + 30


def test_a_chat_and_its_usage_arrive(served: Served, answer: str) -> None:
    told = ask(served)
    assert told.choices[0].message.content == answer
    assert told.choices[0].finish_reason == "length"
    check_usage(served, told.usage)


def test_a_streams_usage_is_counted_once(served: Served, answer: str) -> None:
    import litellm

    chunks = list(ask(served, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == answer
    (usage,) = [one.usage for one in chunks if getattr(one, "usage", None)]
    check_usage(served, usage)
    whole = litellm.stream_chunk_builder(chunks, messages=HELLO)
    assert whole.choices[0].message.content == answer
    check_usage(served, whole.usage)
    reasons = [one.choices[0].finish_reason for one in chunks if one.choices]
    assert [one for one in reasons if one] == ["length"]


def test_an_asynchronous_stream_is_the_same_stream(served: Served, answer: str) -> None:
    import litellm

    async def talk() -> str:
        stream = await litellm.acompletion(**settings_of(served, stream=True))
        return "".join([one.choices[0].delta.content or "" async for one in stream])

    assert asyncio.run(talk()) == answer


@pytest.mark.parametrize("streamed", [False, True])
def test_a_text_completion_loses_nothing_at_its_end(served: Served, streamed: bool) -> None:
    import litellm

    told = litellm.text_completion(
        model=f"text-completion-openai/{NAME}",
        prompt="Once upon a time",
        temperature=0,
        max_tokens=25,
        stream=streamed,
        api_base=served.v1,
        api_key="none",
        timeout=PATIENCE,
    )
    parts = list(told) if streamed else [told]
    text = "".join(one.choices[0].text or "" for one in parts if one.choices)
    assert text == served.tiny.greedy(served.tiny.ids("Once upon a time"), 25)


def test_errors_are_what_litellm_calls_them(served: Served, tiny: Tiny) -> None:
    import litellm

    with pytest.raises(litellm.BadRequestError):
        ask(served, top_p=3.0)
    for length in (5_000, 500_000):
        with pytest.raises(litellm.ContextWindowExceededError):
            ask(served, messages=[{"role": "user", "content": "x" * length}])
    with pytest.raises(litellm.NotFoundError):
        ask(served, model="openai/another")
    with serve(tiny, Limits(keys=("right",)), most_running=1, most_waiting=1) as guarded:
        with pytest.raises(litellm.AuthenticationError):
            ask(guarded)
        with guarded.busy(waiting=1), pytest.raises(litellm.RateLimitError):
            ask(guarded, api_key="right")
