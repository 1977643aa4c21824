"""The page "Bring traces that others published" reads a format of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from draftgym.rollouts.traces.file import read_traces
from tests.docs.test_documentation import ROOT, blocks

PAGE = ROOT / "docs" / "extend" / "traces.md"


def test_the_pages_reader_makes_ordinary_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks(PAGE, "python")[0]
    assert len(code.splitlines()) < 45
    rng, lines = np.random.default_rng(0), []
    for name in range(6):
        prompt, answer = rng.integers(3, 9, 10).tolist(), rng.integers(3, 9, 20).tolist()
        body = {"name": f"q{name}", "task": "math", "prompt": prompt, "answer": answer}
        lines.append(json.dumps(body | {"commits": rng.integers(1, 7, 19).tolist()}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, PAGE.name, "exec"), {})
    told = capsys.readouterr().out
    assert told.count("times plain decoding on 3 texts") == 4
    train = read_traces(Path("runs/mine/train"))
    assert len(train.texts) == 3 and train.origin.target == "our-8b"
