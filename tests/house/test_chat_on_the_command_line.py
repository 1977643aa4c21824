"""`generate --chat` talks over several turns; options that cannot work are answered at once."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import load_target
from draftgym.decoding.text.chat import Chat
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.rollouts.decode.generation import main
from tests.tiny_text import save_target

TEMPLATE = """\
{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}</>{% endfor %}<a>
{%- if loud %}LOUD{% endif %}"""
EXACT = ("--dtype", "float32", "--threads", "1", "--policy", "ngram:4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that chats, and asks for sampling."""
    folder = save_target(tmp_path_factory.mktemp("chatty"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    path = folder / "generation_config.json"
    asked = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> Any:
    """Runs the command with some standard input; returns what it wrote."""

    def call(*arguments: str, stdin: str = "") -> tuple[str, str]:
        stream = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
        monkeypatch.setattr(sys, "stdin", stream)
        main([*arguments, "--target", str(folder), *EXACT])
        return tuple(capsys.readouterr())

    return call


def chat(folder: Path, system: str | None = None, **options: Any) -> Chat:
    target = load_target(str(folder), "float32", 1)
    return Chat(SpeculativeDecoder(target, {}, PlainPolicy()), system, options)


def answer(talk: Chat, text: str, stops: Stops | None = None, **settings: Any) -> str:
    talk.say(text, stops, **settings)
    return str(talk.messages[-1]["content"]) + "\n"


@pytest.mark.parametrize("end", ["/exit\nnever said\n", ""])
def test_a_pipe_talks_line_by_line_until_it_ends(said: Any, folder: Path, end: str) -> None:
    turns = "Hello\n\n  Why?  \nGrüße 🙂\n" + end
    options = ("--chat", "--system", "Be odd.", "--max-new-tokens", "10", "--stats")
    out, err = said(*options, "--template-options", '{"loud": true}', stdin=turns)
    talk = chat(folder, "Be odd.", loud=True)
    how = {"max_new_tokens": 10}
    assert out == "".join(answer(talk, turn, **how) for turn in ("Hello", "Why?", "Grüße 🙂"))
    assert err.count("policy: ngram:4") == 3 and err.count("kept from the turn before") == 2


def test_a_prompt_is_the_first_turn(said: Any, folder: Path) -> None:
    options = ("--chat", "--prompt", "Hello", "--max-new-tokens", "8")
    out, _ = said(*options, stdin="Why?\n")
    talk = chat(folder)
    assert out == "".join(answer(talk, turn, max_new_tokens=8) for turn in ("Hello", "Why?"))


def test_settings_of_the_command_line_reach_the_text(said: Any, folder: Path) -> None:
    options = ("--prompt", "Hello", "--max-new-tokens", "24", "--temperature", "1.5")
    narrow = ("--top-k", "9", "--top-p", "0.8", "--min-p", "0.02", "--repetition-penalty", "1.3")
    out, _ = said(*options, *narrow)
    how = {"max_new_tokens": 24, "temperature": 1.5}
    sampling = SamplingSettings(9, 0.8, 0.02, 1.3)
    assert out == answer(chat(folder), "Hello", sampling=sampling, **how)
    assert out != answer(chat(folder), "Hello", **how)
    stop = next(one for one in out.strip()[3:] if one.isascii() and one.isalnum())
    cut, _ = said(*options, *narrow, "--stop", stop)
    assert cut == out[: out.index(stop)] + "\n"


def test_the_models_generation_config_is_applied_on_request(said: Any, folder: Path) -> None:
    options = ("--prompt", "Hello", "--max-new-tokens", "24")
    out, err = said(*options, "--generation-config")
    assert "temperature=0.7, top_p=0.9, repetition_penalty=1.2" in err
    how: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.7}
    asked = SamplingSettings(top_k=50, top_p=0.9, repetition_penalty=1.2)  # 50: generate's default
    assert out == answer(chat(folder), "Hello", sampling=asked, **how)
    assert said(*options)[0] == answer(chat(folder), "Hello", max_new_tokens=24)
    given, _ = said(*options, "--generation-config", "--top-k", "3", "--temperature", "2")
    asked = SamplingSettings(top_k=3, top_p=0.9, repetition_penalty=1.2)
    wanted = answer(chat(folder), "Hello", sampling=asked, max_new_tokens=24, temperature=2.0)
    assert given == wanted


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "there is no prompt"),
        (("--chat", "--prompt", "-"), "reads its turns from standard input"),
        (("--prompt", "x", "--template-options", "loud"), "--template-options is not JSON"),
        (("--prompt", "x", "--template-options", '{"lod": 1}'), "does not read lod"),
        (("--prompt", "x", "--top-p", "1.5"), "--top-p is 1.5"),
        (("--prompt", "x", "--stop", ""), "stop string is empty"),
        (("--prompt", "x", "--max-new-tokens", "8", "--stop-token-ids", "500"), "stop token 500"),
        (("--prompt", "x", "--system", " "), "no content"),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(
    said: Any, arguments: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(DraftgymError, match=problem) as caught:
        said(*arguments)
    assert caught.value.remedy


def test_lines_that_are_not_utf8_are_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    with pytest.raises(DraftgymError, match="not UTF-8"):
        main(["--chat", "--target", str(folder), *EXACT])
