"""What the server says of its model and its tokenizer; nobody waits for a long text to be read."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from draftgym.serving.http.encoding import Encoding
from draftgym.serving.http.service import Service
from tests.serving.clients.served import PATIENCE, Tiny, serve
from tests.serving.http.test_mistakes_are_told_in_openais_shape import (
    CHAT,
    COMPLETE,
    CONTEXT,
    error_of,
    usual,
)

TEXTS = ["hello", "zażółć 🙂", "", "  blanks \n"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_tokenizers_and_decode_to_the_text(
    client: httpx.Client, tiny: Tiny, text: str
) -> None:
    told = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert told["tokens"] == tiny.ids(text)
    assert told["count"] == len(told["tokens"]) and told["max_model_len"] == 2048
    answer = client.post("/detokenize", json={"tokens": told["tokens"]})
    assert answer.json() == {"prompt": text}


def test_a_chat_is_tokenized_as_it_is_answered(client: httpx.Client, tiny: Tiny) -> None:
    told = client.post("/tokenize", json=usual(CHAT) | {"return_token_strs": True}).json()
    assert told["tokens"] == tiny.chat(usual(CHAT)["messages"])
    assert "".join(told["token_strs"]) == tiny.tokenizer.decode(told["tokens"])
    answer = client.post(CHAT, json=usual(CHAT) | {"max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] == told["count"]


def test_special_tokens_are_told(client: httpx.Client, tiny: Tiny) -> None:
    told = client.get("/tokenizer_info").json()
    assert told["eos_token"] == "<end>" and told["chat_template"] == tiny.tokenizer.chat_template
    end = client.post("/tokenize", json={"prompt": "<end>", "add_special_tokens": False}).json()
    assert end["tokens"] == [tiny.tokenizer.eos_token_id]
    assert client.post("/detokenize", json={"tokens": end["tokens"]}).json()["prompt"] == "<end>"


def test_the_model_tells_its_policies(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("my-tiny", "model")
    own = {"policies": ["eagle3:3", "lookup", "plain"], "default_policy": "eagle3:3"}
    assert model["draftgym"] == own
    assert client.get("/v1/models/my-tiny").json() == model


def test_health_is_ready(client: httpx.Client) -> None:
    assert client.get("/health").status_code == client.head("/health").status_code == 200


def test_tokens_that_are_parts_of_characters_are_told_by_their_bytes(
    service: Service, tiny: Tiny
) -> None:
    encoding = service.model.encoding
    first, *_ = tiny.ids("🙂")
    assert encoding.token(first).text == "bytes:\\xf0" and encoding.token(first).data == b"\xf0"
    (letter,) = tiny.ids("a")
    assert (encoding.token(letter).text, encoding.token(letter).data) == ("a", b"a")


def test_nobody_waits_while_a_long_text_is_read(
    client: httpx.Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, release = threading.Event(), threading.Event()
    known = Encoding._encode

    async def slow(self: Encoding, call: Any) -> Any:
        def held() -> Any:
            reached.set()
            assert release.wait(PATIENCE)
            return call()

        return await known(self, held)

    monkeypatch.setattr(Encoding, "_encode", slow)
    with ThreadPoolExecutor(1) as other:
        asked = {"prompt": "x" * 1000, "max_tokens": 1}
        waiting = other.submit(httpx.post, address + COMPLETE, json=asked, timeout=PATIENCE)
        assert reached.wait(PATIENCE)
        assert client.get("/health").status_code == 200
        ids = client.post(COMPLETE, json={"prompt": [5, 6], "max_tokens": 3})
        assert ids.status_code == 200 and not waiting.done()
        release.set()
        assert waiting.result(PATIENCE).status_code == 200


def test_a_text_that_the_cache_cannot_hold_is_refused(tiny: Tiny) -> None:
    with serve(tiny, cache_bytes=1 << 20) as served:
        asked = usual(COMPLETE) | {"max_tokens": 1900}
        answer = httpx.post(served.address + COMPLETE, json=asked, timeout=PATIENCE)
        assert error_of(answer, 400)["code"] == CONTEXT


def test_the_openapi_page_knows_the_errors_and_no_422(client: httpx.Client) -> None:
    page = client.get("/openapi.json").json()
    for path in (CHAT, COMPLETE, "/tokenize", "/detokenize"):
        answers = page["paths"][path]["post"]["responses"]
        assert {"200", "4XX", "5XX"} <= answers.keys() and "422" not in answers
