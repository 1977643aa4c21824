"""What LangChain's OpenAI models, unmodified, make of the server's answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.serving.clients.served import NAME, PATIENCE, Served

SAID = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}]
MESSAGES = [("system", "Be kind."), ("human", "Who are you?")]


def chat(served: Served, **changes: Any) -> Any:
    from langchain_openai import ChatOpenAI

    settings = {"model": NAME, "temperature": 0, "max_tokens": 30, "max_retries": 0}
    own = {"base_url": served.v1, "api_key": "none", "timeout": PATIENCE}
    return ChatOpenAI(**settings | own | changes)


@pytest.fixture(scope="module")
def answer(served: Served) -> str:
    return served.tiny.greedy(served.tiny.chat(SAID), 30)


def check_usage(served: Served, usage: Any) -> None:
    prompt = len(served.tiny.chat(SAID))
    assert (usage["input_tokens"], usage["output_tokens"]) == (prompt, 30)
    assert usage["total_tokens"] == prompt + 30


def test_an_invoked_chat_is_answered(served: Served, answer: str) -> None:
    told = chat(served).invoke(MESSAGES)
    assert told.content == answer
    check_usage(served, told.usage_metadata)
    assert told.response_metadata["finish_reason"] == "length"
    assert told.response_metadata["model_name"] == NAME


def test_a_streams_chunks_add_up_to_the_answer_and_its_usage(served: Served, answer: str) -> None:
    chunks = list(chat(served, stream_usage=True).stream(MESSAGES))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == answer
    check_usage(served, whole.usage_metadata)
    assert whole.response_metadata["finish_reason"] == "length"


def test_asynchronous_chats_are_the_same_chats(served: Served, answer: str) -> None:
    async def talk() -> list[str]:
        model = chat(served)

        async def streamed() -> str:
            return "".join([str(chunk.content) async for chunk in model.astream(MESSAGES)])

        told = await asyncio.gather(model.ainvoke(MESSAGES), streamed())
        return [told[0].content, told[1]]

    assert asyncio.run(talk()) == [answer, answer]


def test_a_batch_keeps_its_order(served: Served) -> None:
    questions = [f"Number {number}?" for number in range(4)]
    told = chat(served).batch(questions)
    tiny = served.tiny
    for question, one in zip(questions, told, strict=True):
        assert one.content == tiny.greedy(tiny.chat([{"role": "user", "content": question}]), 30)


def test_log_probabilities_arrive(served: Served) -> None:
    told = chat(served, logprobs=True, top_logprobs=2).invoke(MESSAGES)
    rows = told.response_metadata["logprobs"]["content"]
    assert len(rows) == 30 and all(len(row["top_logprobs"]) == 2 for row in rows)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_completion_is_written(served: Served, streamed: bool) -> None:
    from langchain_openai import OpenAI

    model = OpenAI(
        model=NAME,
        temperature=0,
        max_tokens=20,
        max_retries=0,
        base_url=served.v1,
        api_key="none",
        timeout=PATIENCE,
    )
    text = "".join(model.stream("One day")) if streamed else model.invoke("One day")
    assert text == served.tiny.greedy(served.tiny.ids("One day"), 20)


def test_a_refusal_is_an_exception_that_says_why(served: Served) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="tools"):
        chat(served).bind_tools([{"name": "f", "description": "", "parameters": {}}]).invoke("Hi")


@pytest.mark.parametrize("length", [5_000, 500_000])
def test_a_chat_beyond_the_context_is_langchains_overflow(served: Served, length: int) -> None:
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError):
        chat(served).invoke("x" * length)
