"""Any result file becomes Markdown: every figure a cell, and what is no result is refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import markdown
from draftgym.decoding.errors import DraftgymError

CATEGORIES = ("chat", "code", "math")


def row(gain: float, **more: Any) -> dict[str, Any]:
    by_category = {name: [gain, 0.0, 0.0] for name in CATEGORIES}
    return {
        "gain": [gain, gain - 0.01, gain + 0.01],
        "by_category": by_category,
        "share_of_possible": 0.5,
        **more,
    }


def write(folder: Path, name: str, body: Any) -> Path:
    (folder / name).write_text(json.dumps(body))
    return folder / name


def test_the_best_simple_router_is_first_with_interval_and_seeds(tmp_path: Path) -> None:
    judged = {
        "best_single": "ngram:16",
        "routers": {
            "ppo": row(0.154, gain_by_seed=[0.15, 0.16], trained=True),
            "plain": row(-0.3, trained=False),
            "ngram:16 else eagle3:3x6": row(0.1, trained=False),
        },
        "knowing": {"exact optimum": row(0.6)},
    }
    body = {
        "benchmark": "benchmarks.routers.routing",
        "texts": {"heldout": 4, "train": 8},
        "heldout": judged,
        "transfer": {name: judged for name in CATEGORIES},
    }
    lines = markdown(write(tmp_path, "routing.json", body)).splitlines()
    found = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    first = ["ngram:16 else eagle3:3x6", "plain", "**ppo**", "*exact optimum*"]
    assert found[:6] == ["who", "---", *first]
    ppo = next(line for line in lines if line.startswith("| **ppo"))
    for cell in ("+15.4", "+14.4 to +16.4", "+15.0 to +16.0", "50 %"):
        assert f"| **{cell}** |" in ppo


def test_arms_show_their_acceptance_and_the_prize(tmp_path: Path) -> None:
    every = (*CATEGORIES, "all")
    groups = {name: {"acceptance_length": 1.5, "predicted_speedup": 1.2} for name in every}
    gains = {"gain_in_time": 0.25, "gain_in_acceptance_length": 0.5}
    knowing = ("best_of_category", "best_of_prompt", "greedy_oracle", "exact_oracle")
    choice = {"single": "ngram:8", **dict.fromkeys(knowing, 0.4)}
    traces = {"target": "t", "dtype": "float32", "max_new_tokens": 8, "temperature": 0.0}
    body = {
        "benchmark": "benchmarks.routers.arms",
        "traces": traces,
        "texts": {"chat": 3},
        "arms": {"eagle3:2": groups},
        "duels": {},
        "prizes": {name: {"eagle3:2 / ngram:8": gains} for name in every},
        "choices": dict.fromkeys(every, choice),
    }
    text = markdown(write(tmp_path, "arms.json", body))
    assert "| eagle3:2 | 1.50 | 1.50 | 1.50 | 1.50 |" in text
    assert "| eagle3:2 / ngram:8 | +25.0 | +25.0 | +25.0 | +25.0 | +50.0 |" in text
    assert "always ngram:8" in text and text.count("+40.0") == 4 * len(every)


def test_an_evaluation_by_the_clock_becomes_tables(tmp_path: Path) -> None:
    def one(policy: str, category: str, speed: float) -> dict[str, Any]:
        ratio = {"value": speed / 10, "low": speed / 20, "high": speed / 5}
        figures = {"tokens_per_second": speed, "speedup": speed / 5}
        counts = {"identical_texts": 2, "prompts": 2, "intervals": {"against_best": ratio}}
        return {"policy": policy, "category": category, **figures, **counts}

    speeds = {"eagle3:2": 10.0, "plain": 5.0}
    cost = {"arm": "eagle3:2", "rounds": 1200, "predicted_seconds": 3.0, "measured_seconds": 2.0}
    body = {
        "rows": [one(*who, speeds[who[0]]) for who in product(speeds, ("chat", "all"))],
        "best_single_arm": "eagle3:2",
        "arm_costs": [cost],
    }
    text = markdown(write(tmp_path, "clock.json", body))
    assert text.index("| `plain` | 5.0 | 1.00 | 1.00 | -50.0 (-75.0 to +0.0) | 2/2 |") < text.index(
        "| **`eagle3:2`** | **10.0** |"
    )
    assert "| `eagle3:2` | 1,200 | 1.50 |" in text


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"benchmark": "os"}', '{"benchmark": "benchmarks.routers.arms"}'],
)
def test_other_files_are_refused_with_a_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "arms.json").write_text(text)
    for path in (tmp_path / "arms.json", tmp_path / "nowhere.json"):
        with pytest.raises(DraftgymError, match=path.name) as caught:
            markdown(path)
        assert caught.value.remedy
