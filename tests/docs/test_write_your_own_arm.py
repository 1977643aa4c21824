"""The program on the page about arms runs, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import draftgym
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from tests.tiny import tiny_drafters
from tests.tiny_text import text_target

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend" / "arm.md"


def test_the_program_compares_arms_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    match = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert match is not None and match[1].count("\n") < 40
    target = text_target()
    monkeypatch.setattr(draftgym, "load_target", lambda *_, **__: target, raising=False)
    monkeypatch.setattr(draftgym, "load_drafters", tiny_drafters, raising=False)
    names: dict[str, object] = {}
    exec(compile(match[1], str(PAGE), "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*map(str, names["arms"]), "ucb"]  # type: ignore[call-overload]
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    text = plain.generate("List the planets of the solar system.", max_new_tokens=64)
    assert names["texts"] == {tuple(text.tokens)}
