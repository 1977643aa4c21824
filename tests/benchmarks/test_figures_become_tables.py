"""Every figure of a result file becomes a row of a table; what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.system.figures_markdown import CATEGORIES, markdown

from draftgym.decoding.errors import DraftgymError


def row(gain: float, **more: Any) -> dict[str, Any]:
    by_category = {name: [gain, 0.0, 0.0] for name in CATEGORIES}
    return {
        "gain": [gain, gain - 0.01, gain + 0.01],
        "by_category": by_category,
        "share_of_possible": 0.5,
        **more,
    }


def write(folder: Path, name: str, body: Any) -> None:
    (folder / name).write_text(json.dumps(body))


def test_routers_are_ordered_by_gain_with_interval_and_seeds(tmp_path: Path) -> None:
    judged = {
        "best_single": "ngram:16",
        "routers": {"ppo": row(0.154, gain_by_seed=[0.15, 0.16]), "plain": row(-0.3)},
        "knowing": {"exact optimum": row(0.6)},
    }
    transfer = {name: judged for name in CATEGORIES}
    write(tmp_path, "routing.json", {"heldout": judged, "transfer": transfer})
    lines = markdown(tmp_path).splitlines()
    found = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert found[:5] == ["who", "---", "plain", "ppo", "*exact optimum*"]
    ppo = next(line for line in lines if line.startswith("| ppo"))
    assert "**+15.4**" in ppo and "+14.4 to +16.4" in ppo and "+15.0 to +16.0" in ppo


def test_arms_show_their_acceptance_and_the_prize(tmp_path: Path) -> None:
    groups = {
        name: {"acceptance_length": 1.5, "predicted_speedup": 1.2} for name in (*CATEGORIES, "all")
    }
    prize = {"eagle3:2 / ngram:8": {"best_single": "ngram:8", "gain_in_time": 0.25}}
    prizes = {name: prize for name in (*CATEGORIES, "all")}
    write(tmp_path, "arms.json", {"arms": {"eagle3:2": groups}, "prizes": prizes})
    text = markdown(tmp_path)
    assert "| `eagle3:2` | 1.50 | 1.50 | 1.50 | 1.50 | 1.50 | **1.50** | 1.20 |" in text
    assert text.count("+25.0") == len(CATEGORIES) + 1


def test_a_folder_without_results_and_damaged_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="none of"):
        markdown(tmp_path)
    write(tmp_path, "arms.json", {"arms": 3})
    with pytest.raises(DraftgymError, match=r"arms\.json") as caught:
        markdown(tmp_path)
    assert "make figures" in caught.value.remedy
