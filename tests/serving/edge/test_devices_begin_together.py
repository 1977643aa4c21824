"""Devices of one host that begin together make their small LM once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from draftgym.serving.edge.devices import drafting
from tests.serving.edge.edges import in_threads


def test_the_small_lm_is_made_by_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers: list[Path] = []

    def assemble(part: Path, folder: Path, target: Any) -> None:
        makers.append(folder)
        threading.Event().wait(0.05)
        folder.mkdir()  # another one's must not be there
        (folder / "config.json").touch()

    monkeypatch.setattr(drafting, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(drafting, "load_target", lambda *_, **__: None)
    monkeypatch.setattr(drafting, "assemble_small_lm", assemble)
    folders = in_threads(*[drafting.shipped_small_lm] * 3)
    assert makers == [folders[0]] and len(set(folders)) == 1
