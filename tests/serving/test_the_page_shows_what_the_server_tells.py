"""The page at `/`, in a browser: who drafted what, how it compares, and what went wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from draftgym.rollouts.report.palette import OF_DRAFTER, SPARE
from draftgym.serving.http.page import HEADERS, PAGE
from tests.serving.browser import Browser, browser, needs_browser
from tests.serving.scripted import Round, Script, running

MIXED: list[Round] = [
    ("plain", [("Over", False)]),
    ("eagle3:3x6", [(" the", True), (" hills", True), (",", False)]),
    ("ngram:8", [(" far <b>", True), (" away\n", False)]),
    ("eagle3:3x6", [("", False), ("\u00e9", False)]),
]
WHOLE = "".join(text for _, tokens in MIXED for text, _ in tokens)
PLAIN: list[Round] = [("plain", [(text, False)]) for _, tokens in MIXED for text, _ in tokens]

NOTHING_YET = "\u2013"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture
def script() -> Script:
    script = Script({"router": MIXED, "plain": PLAIN})
    script.held.set()
    return script


@pytest.fixture
def page(window: Browser, script: Script) -> Iterator[Browser]:
    with running(script.app()) as address:
        window.open(address)
        window.wait(lambda: window.text("model") == "scripted")
        yield window
        window.driver.get("about:blank")  # an open connection would keep the server


def write(page: Browser, prompt: str = "Where?") -> None:
    """Writes a text and its comparison."""
    page.type("prompt", prompt)
    page.press("write")
    page.wait(lambda: page.text("same") != NOTHING_YET)


@needs_browser
def test_a_prompt_becomes_a_text_and_the_same_request_is_made_of_plain_decoding(
    page: Browser, script: Script
) -> None:
    page.type("temperature", "0.7")
    page.type("tokens", "12")
    write(page, "Where is it?")
    assert page.text("text") == page.text("plain-text") == WHOLE
    mine, plain = script.asked
    assert mine["messages"] == [{"role": "user", "content": "Where is it?"}]
    assert (mine["temperature"], mine["max_tokens"], mine["model"]) == (0.7, 12, "scripted")
    assert mine["stream"] and mine["stream_options"] == {"include_usage": True}
    assert mine["draftgym"] == {"policy": "router", "details": True}
    assert plain == mine | {"draftgym": {"policy": "plain", "details": True}}


@needs_browser
def test_drafted_tokens_have_their_drafters_colour_and_the_targets_own_have_none(
    page: Browser,
) -> None:
    write(page)
    shown = page.run(
        "return [...document.querySelectorAll('#text .round > span')].map((token) => ["
        "token.textContent, token.dataset.drafter ?? null, "
        "getComputedStyle(token).getPropertyValue('--drafter'), "
        "getComputedStyle(token).backgroundColor])"
    )
    told = [(text, arm, drafted) for arm, tokens in MIXED for text, drafted in tokens]
    assert [text for text, *_ in shown] == [text for text, *_ in told]
    for (_, drafter, colour, tint), (_, arm, drafted) in zip(shown, told, strict=True):
        wanted = arm.partition(":")[0] if drafted else None
        assert drafter == wanted
        assert colour == (OF_DRAFTER[wanted] if wanted else "")
        assert (tint == "rgba(0, 0, 0, 0)") is not drafted
    legend = "return [...document.querySelectorAll('#legend li')].map((one) => one.textContent)"
    assert page.run(legend) == ["the target", "eagle3", "ngram"]


@needs_browser
def test_shares_acceptance_and_the_comparison_are_shown(page: Browser) -> None:
    write(page)
    lines = page.run("return [...document.querySelectorAll('#arms li')].map((l) => l.textContent)")
    assert lines == [
        "eagle3:3x650 %2 of 4 rounds",
        "plain25 %1 of 4 rounds",
        "ngram:825 %1 of 4 rounds",
    ]
    grown = "return [...document.querySelectorAll('#bar span')].map((one) => one.style.flexGrow)"
    assert page.run(grown) == ["2", "1", "1"]
    assert page.text("acceptance") == "2.33"  # 7 tokens in the 3 rounds behind the first one
    assert re.fullmatch(r"\d+\.\d\d\u00d7", page.text("speedup"))
    assert page.text("same") == "the same"
    assert page.text("state") == "8 tokens, as many as were allowed."


@needs_browser
def test_a_text_that_is_not_plain_decodings_is_called_another(
    page: Browser, script: Script
) -> None:
    script.texts["plain"] = [*PLAIN[:2], ("plain", [(" valley", False)])]
    write(page)
    assert page.text("same") == "another"
    assert page.text("difference") == "parts from plain decoding's at character 10"
    assert page.shows("plain-text") and page.text("plain-text") == "Over the valley"


@needs_browser
def test_text_that_was_held_back_is_shown_and_counted_as_no_token(
    page: Browser, script: Script
) -> None:
    script.held_back = " Us"
    write(page)
    assert page.text("text") == WHOLE + " Us" and page.text("same") == "the same"
    assert page.text("state").startswith("8 tokens") and page.text("acceptance") == "2.33"


@needs_browser
def test_plain_decoding_is_not_compared_with_itself(page: Browser, script: Script) -> None:
    page.choose("policy", "plain")
    page.press("write")
    page.wait(lambda: "This is plain decoding" in page.text("state"))
    assert len(script.asked) == 1 and page.text("text") == WHOLE
    assert page.run("return document.querySelectorAll('#text .drafted').length") == 0


@needs_browser
def test_any_rule_can_be_typed(page: Browser, script: Script) -> None:
    assert not page.shows("rule")
    page.choose("policy", "another \u2026")
    page.type("rule", "ngram:4>eagle3:2")
    script.texts["ngram:4>eagle3:2"] = MIXED
    write(page)
    assert script.asked[0]["draftgym"]["policy"] == "ngram:4>eagle3:2"


@needs_browser
@pytest.mark.parametrize("way", ["button", "key"])
def test_stop_leaves_the_server_and_keeps_what_was_written(
    page: Browser, script: Script, way: str
) -> None:
    from selenium.webdriver import Keys

    script.held.clear()
    page.type("prompt", "Where?" + Keys.CONTROL + Keys.ENTER)
    page.wait(lambda: page.text("text") == "Over")
    assert page.is_busy()
    if way == "button":
        page.press("stop")
    else:
        page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.wait(lambda: page.text("state") == "Stopped.")
    assert not page.is_busy()
    assert script.left.wait(60)
    assert page.text("text") == "Over" and page.text("same") == NOTHING_YET
    script.held.set()
    write(page)  # and another can be written
    assert page.text("text") == WHOLE


@needs_browser
def test_everything_is_reached_by_the_keyboard_and_keeps_its_focus(page: Browser) -> None:
    from selenium.webdriver import Keys

    reached = []
    page.type("prompt", "Where?")
    for _ in range(5):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.run("return document.activeElement.id"))
    assert reached == ["policy", "temperature", "tokens", "write", "stop"]
    page.run("document.getElementById('write').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.SPACE)
    page.wait(lambda: page.text("same") != NOTHING_YET)
    assert page.run("return document.activeElement.id") == "write"


@needs_browser
def test_what_the_server_refuses_is_shown_in_its_words(page: Browser, script: Script) -> None:
    script.refusals.append((400, '"max_tokens" is more than the context <leaves>'))
    page.press("write")
    page.wait(lambda: page.shows("error"))
    assert page.text("error") == '"max_tokens" is more than the context <leaves>.'
    write(page)
    assert not page.shows("error")


@needs_browser
def test_a_server_that_loads_is_asked_again(page: Browser, script: Script) -> None:
    script.refusals.append((503, "the model is being loaded"))
    page.press("write")
    told = "The model is being loaded. Trying again in 1 s."
    page.wait(lambda: page.text("state") == told)
    page.wait(lambda: page.text("same") == "the same")


@needs_browser
def test_an_api_key_is_asked_for_only_where_the_server_wants_one(
    page: Browser, script: Script
) -> None:
    assert not page.shows("key")
    script.refusals.append((401, "Give an API key."))
    page.driver.refresh()
    page.wait(lambda: page.shows("key"))
    assert page.text("error") == "Give an API key."
    page.type("key", "sesame")
    write(page)
    assert script.keys[-3:] == ["Bearer sesame"] * 3 and not page.shows("key")
    page.driver.refresh()
    page.wait(lambda: page.text("model") == "scripted")
    assert script.keys[-1] == "Bearer sesame"  # kept until the tab is closed
    stores = "return [sessionStorage.length, localStorage.length, document.cookie]"
    assert page.run(stores) == [1, 0, ""]


@needs_browser
def test_the_page_asks_no_other_host_and_complains_of_nothing(
    page: Browser, script: Script
) -> None:
    write(page)
    assert page.hosts() == {page.run("return location.host")}
    assert page.complaints() == []


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 1100])
def test_the_page_fits_its_window(page: Browser, width: int) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 800},
    )
    write(page)
    whole = "const whole = document.documentElement; return whole.scrollWidth - whole.clientWidth"
    assert page.run(whole) == 0 and page.run("return innerWidth") == width
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_colours_are_the_reports() -> None:
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    named = dict(re.findall(r'\[data-drafter="(\w+)"\] \{ --drafter: (#\w+)', style))
    assert named == OF_DRAFTER
    assert re.findall(r"\.spare-\d \{ --drafter: (#\w+)", style) == list(SPARE)


def test_nothing_of_the_page_is_inline_or_from_elsewhere() -> None:
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html)
    for path in PAGE.iterdir():
        for address in re.findall(r"https?://[^'\"\s]+", path.read_text(encoding="utf-8")):
            assert address == "http://www.w3.org/2000/svg", f"{path.name}: {address}"  # a name
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
