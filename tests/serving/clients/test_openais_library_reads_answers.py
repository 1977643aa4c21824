"""What openai's own library, unmodified, makes of the server's answers."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from tests.serving.clients.served import NAME, PATIENCE, Served

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, you!"}]


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    import openai

    return openai.OpenAI(base_url=served.v1, api_key="none", max_retries=0, timeout=PATIENCE)


@pytest.fixture(scope="module")
def answer(served: Served) -> str:
    """What transformers answers in 40 tokens."""
    return served.tiny.greedy(served.tiny.chat(HELLO), 40)


def ask(client: Any, **changes: Any) -> Any:
    settings = {"model": NAME, "messages": HELLO, "temperature": 0, "max_completion_tokens": 40}
    return client.chat.completions.create(**settings | changes)


def test_the_model_is_listed_and_found(client: Any) -> None:
    (listed,) = client.models.list().data
    assert listed == client.models.retrieve(NAME)
    assert listed.id == NAME and listed.object == "model"


def test_a_chat_is_answered_as_transformers_answers_it(
    served: Served, client: Any, answer: str
) -> None:
    told = ask(client)
    (choice,) = told.choices
    assert choice.message.content == answer and choice.message.role == "assistant"
    assert choice.finish_reason == "length" and choice.logprobs is None
    prompt = len(served.tiny.chat(HELLO))
    assert told.usage.prompt_tokens == prompt and told.usage.completion_tokens == 40
    assert told.usage.total_tokens == prompt + 40


def test_a_streamed_chat_is_the_same_chat(client: Any, answer: str) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    *texts, last = chunks
    assert "".join(one.choices[0].delta.content or "" for one in texts) == answer
    assert texts[0].choices[0].delta.role == "assistant"
    assert [one.choices[0].finish_reason for one in texts[:-1]] == [None] * (len(texts) - 1)
    assert texts[-1].choices[0].finish_reason == "length"
    assert last.choices == [] and last.usage.completion_tokens == 40
    assert all(one.usage is None for one in texts)
    assert len({one.id for one in chunks}) == 1


def test_the_librarys_own_stream_helper_ends_with_the_whole_chat(client: Any, answer: str) -> None:
    settings = {"model": NAME, "messages": HELLO, "temperature": 0, "stop": answer[20:23]}
    with client.chat.completions.stream(**settings) as stream:
        events = [event.type for event in stream]
        told = stream.get_final_completion()
    assert told.choices[0].message.content == answer[: answer.index(answer[20:23])]
    assert "content.delta" in events and events[-1] == "content.done"


def test_a_stop_string_ends_a_stream_and_is_not_shown(client: Any, answer: str) -> None:
    stop = answer[7:10]
    before = answer[: answer.index(stop)]
    chunks = list(ask(client, stream=True, stop=[stop]))
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == before
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert ask(client, stop=stop).choices[0].message.content == before


def test_many_asynchronous_chats_are_written_together(served: Served, answer: str) -> None:
    import openai

    async def talk() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=served.v1, api_key="none", max_retries=0, timeout=PATIENCE
        ) as client:

            async def whole() -> str:
                return str((await ask(client)).choices[0].message.content)

            async def streamed() -> str:
                stream = await ask(client, stream=True)
                return "".join([one.choices[0].delta.content or "" async for one in stream])

            return await asyncio.gather(*(whole() for _ in range(4)), *(streamed() for _ in "1234"))

    assert asyncio.run(talk()) == [answer] * 8


def test_log_probabilities_of_a_chat_are_transformers(served: Served, client: Any) -> None:
    told = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    written = [byte for one in told for byte in one.bytes]
    prompt = served.tiny.chat(HELLO)
    ids = [*prompt, *served.tiny.ids_of_bytes(written)]
    assert [one.logprob for one in told] == pytest.approx(
        served.tiny.logprobs(ids)[len(prompt) - 1 :], abs=1e-4
    )
    for one in told:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].logprob == one.logprob  # greedy took the likeliest


@pytest.mark.parametrize("streamed", [False, True])
def test_choices_differ_and_a_seed_repeats_them(client: Any, streamed: bool) -> None:
    def texts() -> list[str]:
        told = ask(client, n=3, seed=7, temperature=1, stream=streamed)
        if not streamed:
            return [one.message.content for one in told.choices]
        found = {0: "", 1: "", 2: ""}
        for chunk in told:
            for one in chunk.choices:
                found[one.index] += one.delta.content or ""
        return list(found.values())

    first = texts()
    assert len(set(first)) == 3 and texts() == first


def test_prompts_of_every_kind_are_completed(served: Served, client: Any) -> None:
    tiny = served.tiny
    texts = ["One", "Two, three"]
    ids = [tiny.ids(text) for text in texts]
    expected = [tiny.greedy(one, 12) for one in ids]
    settings = {"model": NAME, "temperature": 0, "max_tokens": 12}
    for prompts in (texts, ids):
        told = client.completions.create(prompt=prompts, **settings)
        assert [one.text for one in sorted(told.choices, key=lambda one: one.index)] == expected
        for prompt, text in zip(prompts, expected, strict=True):
            assert client.completions.create(prompt=prompt, **settings).choices[0].text == text


def test_an_echoed_prompt_has_the_log_probabilities_that_transformers_gives(
    served: Served, client: Any
) -> None:
    text = "Some words that are read."
    (choice,) = client.completions.create(
        model=NAME, prompt=text, max_tokens=0, echo=True, logprobs=2
    ).choices
    told = choice.logprobs
    ids = served.tiny.ids(text)
    assert choice.text == text and told.tokens == list(text)
    assert told.text_offset == list(range(len(text)))
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(served.tiny.logprobs(ids), abs=1e-4)
    for token, own, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top is None or (2 <= len(top) <= 3 and top[token] == own <= max(top.values()))


def test_streamed_completions_are_whole_ones(client: Any) -> None:
    settings = {"model": NAME, "prompt": "Once", "max_tokens": 30, "seed": 3, "temperature": 0.7}
    (whole,) = client.completions.create(logprobs=1, **settings).choices
    chunks = list(client.completions.create(logprobs=1, stream=True, **settings))
    parts = [one.choices[0] for one in chunks]
    assert "".join(one.text for one in parts) == whole.text
    assert [one.finish_reason for one in parts] == [None] * (len(parts) - 1) + [whole.finish_reason]
    for name in ("tokens", "token_logprobs", "text_offset"):
        pieces = [getattr(one.logprobs, name) for one in parts if one.logprobs is not None]
        told = [each for piece in pieces for each in piece]
        expected = getattr(whole.logprobs, name)
        assert told == (pytest.approx(expected, abs=1e-4) if name[-3:] == "obs" else expected)


def test_a_prediction_is_accepted_and_counted(client: Any) -> None:
    drawn = {"temperature": 0.3, "seed": 1}
    alone = ask(client, **drawn)
    text = alone.choices[0].message.content
    told = ask(client, **drawn, prediction={"type": "content", "content": text})
    assert told.choices[0].message.content == text
    without, with_it = (one.usage.completion_tokens_details for one in (alone, told))
    assert with_it.accepted_prediction_tokens > 10 + without.accepted_prediction_tokens


@pytest.mark.parametrize("policy", ["plain", "eagle3:3", "ngram:2"])
def test_a_policy_can_be_named_and_changes_no_text(client: Any, answer: str, policy: str) -> None:
    told = ask(client, extra_body={"draftgym": {"policy": policy}})
    assert told.choices[0].message.content == answer
    steps = told.metrics["speculative_decoding"]
    drafted = steps["num_draft_tokens"]
    assert (drafted == 0) == (policy == "plain")
    assert math.isclose(
        steps["draft_acceptance_rate"] * drafted, steps["num_accepted_draft_tokens"]
    )
