"""Seeds, choices, lists of prompts and echoes: what each text is, whoever else is asked for."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serving.clients.served import Tiny
from tests.serving.http.test_mistakes_are_told_in_openais_shape import CHAT, COMPLETE, usual
from tests.serving.http.test_streams_say_what_whole_answers_say import LONG, texts_of, whole


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_the_same_seed_writes_the_same_text_under_every_policy(
    client: httpx.Client, path: str
) -> None:
    policies: list[dict[str, Any]] = [
        {"policy": name} for name in ("plain", "eagle3:3", "lookup", "ngram:8>eagle3:2")
    ]
    texts = [
        texts_of(whole(client, path, LONG | {"draftgym": one}))
        for one in [*policies, {"max_draft": 0}, {}]
    ]
    assert all(one == texts[0] for one in texts)


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_without_a_seed_texts_differ(client: httpx.Client, path: str) -> None:
    asked = {"max_tokens": 40, "temperature": 1.5}
    texts = {texts_of(whole(client, path, asked))[0] for _ in range(3)}
    assert len(texts) > 1


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_the_first_choice_is_the_only_one_of_a_request_for_one(
    client: httpx.Client, path: str
) -> None:
    (alone,) = texts_of(whole(client, path, LONG))
    three = texts_of(whole(client, path, LONG | {"n": 3}))
    five = texts_of(whole(client, path, LONG | {"n": 5}))
    assert three[0] == alone and five[:3] == three
    assert len(set(five)) == 5


def test_prompts_of_a_list_are_answered_as_if_alone(client: httpx.Client, tiny: Tiny) -> None:
    prompts = ["hi", "another prompt", "hi"]
    together = whole(client, COMPLETE, LONG | {"prompt": prompts, "n": 2})
    assert [one["index"] for one in together["choices"]] == list(range(6))
    alone = [texts_of(whole(client, COMPLETE, LONG | {"prompt": p, "n": 2})) for p in prompts]
    assert texts_of(together) == [text for texts in alone for text in texts]
    assert together["usage"]["prompt_tokens"] == sum(map(len, prompts))
    ids = [tiny.ids(prompt) for prompt in prompts]
    assert texts_of(whole(client, COMPLETE, LONG | {"prompt": ids, "n": 2})) == texts_of(together)
    assert texts_of(whole(client, COMPLETE, LONG | {"prompt": ids[1]})) == alone[1][:1]


def test_greedy_text_is_the_models_own(client: httpx.Client, tiny: Tiny) -> None:
    asked = {"max_tokens": 40, "temperature": 0}
    assert texts_of(whole(client, COMPLETE, asked)) == [tiny.greedy(tiny.ids("hi"), 40)]
    said = usual(CHAT)["messages"]
    assert texts_of(whole(client, CHAT, asked)) == [tiny.greedy(tiny.chat(said), 40)]


def test_a_last_message_of_the_assistant_is_continued(client: httpx.Client, tiny: Tiny) -> None:
    messages = [*usual(CHAT)["messages"], {"role": "assistant", "content": "Well, I"}]
    asked = {"messages": messages, "max_tokens": 20, "temperature": 0}
    template = tiny.tokenizer.apply_chat_template(
        messages, continue_final_message=True, tokenize=False
    )
    assert texts_of(whole(client, CHAT, asked)) == [tiny.greedy(tiny.ids(template), 20)]


@pytest.mark.parametrize("new", [0, 1, 5])
def test_an_echo_begins_with_the_prompt_and_tells_how_likely_it_is(
    client: httpx.Client, tiny: Tiny, new: int
) -> None:
    prompt = "echo żółć"
    asked = {"prompt": prompt, "max_tokens": new, "temperature": 0, "echo": True, "logprobs": 1}
    (choice,) = whole(client, COMPLETE, asked)["choices"]
    written = tiny.greedy(tiny.ids(prompt), new) if new else ""
    assert choice["text"] == prompt + written
    told, ids = choice["logprobs"], tiny.ids(prompt)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1 : len(ids)] == pytest.approx(tiny.logprobs(ids), abs=1e-3)
    assert len(told["tokens"]) == len(ids) + new
    for logprob, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
        assert logprob in top.values() and len(top) <= 2
        assert max(top.values()) >= logprob
    beginnings = [told["text_offset"][at] for at in range(6)]
    assert beginnings == [0, 1, 2, 3, 4, 5]
    assert told["text_offset"] == sorted(told["text_offset"])
    without = whole(client, COMPLETE, asked | {"logprobs": None})["choices"][0]
    assert without["text"] == choice["text"] and without["logprobs"] is None


def test_a_prompt_of_one_token_can_be_echoed(client: httpx.Client) -> None:
    asked = {"prompt": "a", "max_tokens": 1, "echo": True, "logprobs": 0}
    (choice,) = whole(client, COMPLETE, asked)["choices"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["tokens"]) == 2


def test_a_prediction_changes_no_text_and_is_accepted_where_it_is_right(
    client: httpx.Client,
) -> None:
    asked = {"max_tokens": 40, "temperature": 0}
    (text,) = texts_of(whole(client, CHAT, asked))
    for content in (text, [{"type": "text", "text": text}], "nothing of the kind"):
        prediction = {"type": "content", "content": content}
        told = whole(client, CHAT, asked | {"prediction": prediction})
        assert texts_of(told) == [text]
        details = told["usage"]["completion_tokens_details"]
        if content == text:
            assert details["accepted_prediction_tokens"] > 20


def test_a_beginning_that_is_known_is_not_read_again(client: httpx.Client) -> None:
    prompt = "a beginning that many requests share, word for word, number "
    whole(client, COMPLETE, {"prompt": prompt + "one", "max_tokens": 2})
    told = whole(client, COMPLETE, {"prompt": prompt + "two", "max_tokens": 2})
    cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached <= len(prompt) + 1
