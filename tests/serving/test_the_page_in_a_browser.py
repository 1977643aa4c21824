"""The page at `/` and the server behind it, in a browser: what is shown is what was decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from draftgym.serving.batching.batcher import Batcher
from draftgym.serving.http.service import Limits
from tests.serving.browser import PATIENCE, Browser, browser, needs_browser
from tests.serving.clients.served import NAME, Served, Tiny, make_tiny, serve

pytestmark = needs_browser

NOTHING_YET = "\u2013"
ASKED = {"model": NAME, "temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def served(tiny: Tiny) -> Iterator[Served]:
    with serve(tiny) as served:
        yield served


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture
def page(window: Browser, served: Served) -> Browser:
    window.open(f"{served.address}/")
    window.wait(lambda: window.text("model") == NAME)
    return window


def write(page: Browser, prompt: str, policy: str = "eagle3:3", tokens: int = 60) -> None:
    """Asks for a text."""
    page.type("prompt", prompt)
    page.choose("policy", policy)
    page.type("tokens", str(tokens))
    page.press("write")


def asked_directly(served: Served, prompt: str, policy: str) -> dict[str, Any]:
    """What the API answers to the same request."""
    messages = [{"role": "user", "content": prompt}]
    body = ASKED | {"messages": messages, "draftgym": {"policy": policy, "details": True}}
    answer = httpx.post(f"{served.v1}/chat/completions", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("policy", ["eagle3:3", "ngram:4"])
def test_the_text_and_who_drafted_it_are_what_the_api_tells(
    page: Browser, served: Served, policy: str
) -> None:
    write(page, "What is it? What is it?", policy)
    page.wait(lambda: page.text("same") != NOTHING_YET)
    told = asked_directly(served, "What is it? What is it?", policy)["choices"][0]
    assert page.text("text") == page.text("plain-text") == told["message"]["content"]
    assert page.text("same") == "the same"
    shown = page.run(
        "return [...document.querySelectorAll('#text .round > span')].map((token) => "
        "[token.textContent, token.dataset.drafter ?? null])"
    )
    drafter = policy.partition(":")[0]
    pieces = [one for part in told["draftgym"]["rounds"] for one in part["pieces"]]
    assert shown == [[one["text"], drafter if one["drafted"] else None] for one in pieces]
    assert {one["drafted"] for one in pieces} == {True, False}


def test_shares_speed_and_acceptance_are_shown(page: Browser, served: Served) -> None:
    write(page, "Who?")
    page.wait(lambda: page.text("same") != NOTHING_YET)
    arms = asked_directly(served, "Who?", "eagle3:3")["draftgym"]["arms"]
    lines = page.run("return [...document.querySelectorAll('#arms li')].map((l) => l.textContent)")
    assert sorted(line.split("%")[1] for line in lines) == sorted(
        f"{count} of {sum(arms.values())} rounds" for count in arms.values()
    )
    assert page.text("acceptance") == f"{59 / sum(arms.values()):.2f}"
    assert float(page.text("rate")) > 0 and page.text("speedup").endswith("\u00d7")


def test_stop_frees_the_texts_place(page: Browser, served: Served) -> None:
    with counted_steps(served.batcher) as steps:
        steps.release(3)  # the prompt, and two rounds
        write(page, "Tell all.", tokens=1000)
        page.wait(lambda: page.text("text"))
        page.press("stop")
        page.wait(lambda: page.text("state") == "Stopped.")
        steps.release(20)  # 1000 tokens need far more
        page.wait(lambda: not served.batcher.running)
    assert page.text("same") == NOTHING_YET
    write(page, "And now?")
    page.wait(lambda: page.text("same") == "the same")


@contextmanager
def counted_steps(batcher: Batcher) -> Iterator[threading.Semaphore]:
    """Within, the batch plays as many rounds as are released."""
    steps, play = threading.Semaphore(0), batcher.step

    def step() -> None:
        assert steps.acquire(timeout=PATIENCE)
        play()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batcher, "step", step)
        try:
            yield steps
        finally:
            steps.release(10_000)


def test_what_cannot_be_served_is_told_in_the_servers_words(page: Browser) -> None:
    write(page, "Why?", tokens=100_000)
    page.wait(lambda: page.shows("error"))
    assert "100000 new ones do not fit" in page.text("error")
    write(page, "Why?")
    page.wait(lambda: page.text("same") == "the same")
    assert not page.shows("error")


def test_a_full_queue_is_told(window: Browser, tiny: Tiny) -> None:
    with serve(tiny, most_running=1, most_waiting=1) as served, served.busy(1):
        window.open(f"{served.address}/")
        window.wait(lambda: window.text("model") == NAME)
        window.press("write")
        window.wait(lambda: "Too many texts wait" in window.text("error"))
        window.driver.get("about:blank")


def test_the_servers_key_opens_it_and_no_other(window: Browser, tiny: Tiny) -> None:
    with serve(tiny, Limits(keys=("sesame",))) as served:
        window.open(f"{served.address}/")
        window.wait(lambda: window.shows("key"))
        for key, wanted in (("barley", "No such API key"), ("sesame", "")):
            window.type("key", key)
            window.type("tokens", "8")
            window.press("write")
            window.wait(lambda: not window.is_busy())
            assert wanted in window.text("error") and window.shows("error") == bool(wanted)
        assert window.text("same") == "the same" and not window.shows("key")
        window.driver.get("about:blank")


def test_a_server_that_loads_its_model_is_waited_for(window: Browser, tiny: Tiny) -> None:
    with serve(tiny, loaded=False) as served:
        window.open(f"{served.address}/")
        window.wait(lambda: "model is being loaded" in window.text("state"))
        served.load()
        window.wait(lambda: window.text("model") == NAME)
        assert window.text("state") == ""
        window.driver.get("about:blank")


def test_nobody_else_is_asked_and_the_console_stays_empty(page: Browser, served: Served) -> None:
    write(page, "Who else?")
    page.wait(lambda: page.text("same") == "the same")
    assert page.hosts() == {served.address.removeprefix("http://")}
    assert page.complaints() == []
