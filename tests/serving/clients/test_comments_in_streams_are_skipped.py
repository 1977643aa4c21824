"""While a text waits its stream carries comments; clients take them for nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from draftgym.serving.http.service import Limits
from tests.serving.clients.served import NAME, PATIENCE, Served, Tiny, serve

HELLO = [{"role": "user", "content": "Hello?"}]
ASKED = {"messages": HELLO, "temperature": 0, "max_tokens": 20, "stream": True}


@pytest.fixture(scope="module")
def impatient(tiny: Tiny) -> Iterator[Served]:
    """A server that comments on every little silence."""
    with serve(tiny, Limits(ping_seconds=0.02)) as server:
        yield server


def with_openai(served: Served) -> Iterator[str]:
    import openai

    client = openai.OpenAI(base_url=served.v1, api_key="none", timeout=PATIENCE)
    for chunk in client.chat.completions.create(model=NAME, **ASKED):
        yield chunk.choices[0].delta.content or ""


def with_litellm(served: Served) -> Iterator[str]:
    import litellm

    own = {"api_base": served.v1, "api_key": "none", "timeout": PATIENCE}
    for chunk in litellm.completion(model=f"openai/{NAME}", **own, **ASKED):
        yield chunk.choices[0].delta.content or ""


def with_langchain(served: Served) -> Iterator[str]:
    from langchain_openai import ChatOpenAI

    settings = {"base_url": served.v1, "api_key": "none", "timeout": PATIENCE}
    chat = ChatOpenAI(model=NAME, temperature=0, max_tokens=20, **settings)
    for chunk in chat.stream([("human", "Hello?")]):
        yield str(chunk.content)


def release_after_comments(served: Served, release: threading.Event) -> None:
    """Lets the server write when it has commented three times on this stream and another one."""
    body: dict[str, Any] = {"model": NAME, **ASKED}
    url = f"{served.v1}/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=PATIENCE) as answer:
        comments = 0
        for line in answer.iter_lines():
            comments += line.startswith(":") and served.batcher.waiting == 2
            if comments == 3:
                release.set()


@pytest.mark.slow
@pytest.mark.parametrize("read", [with_openai, with_litellm, with_langchain])
def test_a_text_that_waited_is_whole(
    impatient: Served, read: Callable[[Served], Iterator[str]]
) -> None:
    tiny = impatient.tiny
    with impatient.busy() as release:
        ours = threading.Thread(target=release_after_comments, args=(impatient, release))
        ours.start()
        text = "".join(read(impatient))
        ours.join(PATIENCE)
    assert text == tiny.greedy(tiny.chat(HELLO), 20)
