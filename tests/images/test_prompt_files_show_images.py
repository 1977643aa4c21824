"""A prompt file's images are paths beside it, and each is looked at when the file is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.prompts.sets import Prompt, load_prompts
from tests.tiny_images import picture


def write(folder: Path, **fields: Any) -> Path:
    """A prompt file of one line, beside the image `shown/a.png`."""
    (folder / "shown").mkdir(exist_ok=True)
    picture().save(folder / "shown" / "a.png")
    (folder / "shown" / "notes.txt").write_text("no image", encoding="utf-8")
    line = {"question_id": "q", "turns": ["What is it?", "And now?"], **fields}
    (folder / "prompts.jsonl").write_text(json.dumps(line), encoding="utf-8")
    return folder / "prompts.jsonl"


@pytest.mark.parametrize(
    ("images", "per_turn"),
    [
        (["shown/a.png"], [["shown/a.png"], []]),
        ([["shown/a.png"], []], [["shown/a.png"], []]),
        ([[], ["shown/a.png", "shown/a.png"]], [[], ["shown/a.png", "shown/a.png"]]),
        ([], []),
        ([[], []], []),
        (None, []),
    ],
)
def test_images_lie_beside_the_file_one_list_per_turn(
    tmp_path: Path, images: object, per_turn: list[list[str]]
) -> None:
    (prompt,) = load_prompts(write(tmp_path, images=images))
    assert prompt.images == tuple(tuple(tmp_path / one for one in row) for row in per_turn)


def test_a_prompt_without_images_is_what_it_was(tmp_path: Path) -> None:
    (prompt,) = load_prompts(write(tmp_path))
    assert prompt == Prompt("q", "uncategorised", ("What is it?", "And now?"))


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (["shown/b.png"], "there is no image"),
        (["shown/notes.txt"], "no image that Pillow can read"),
        (["shown"], "there is no image"),
        ("shown/a.png", "must be a list"),
        ({"a": 1}, "must be a list"),
        ([1], "no list of paths"),
        ([["shown/a.png", 2]], "no list of paths"),
        ([[""]], "no list of paths"),
        ([["shown/a.png"], [], []], "3 lists for 2 turns"),
    ],
)
def test_what_is_no_image_is_refused_with_its_line(
    tmp_path: Path, images: object, problem: str
) -> None:
    with pytest.raises(DraftgymError, match=problem) as refused:
        load_prompts(write(tmp_path, images=images))
    assert "prompts.jsonl, line 1" in refused.value.problem
    assert refused.value.remedy


def test_a_cut_image_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, images=["shown/a.png"])
    whole = (tmp_path / "shown" / "a.png").read_bytes()
    (tmp_path / "shown" / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DraftgymError, match="Pillow can read"):
        load_prompts(path)
