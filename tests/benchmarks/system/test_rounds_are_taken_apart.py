"""The parts of a pass, and of a round, are all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.system.round_parts import PARTS, PHASES, RoundPartsArgs, measure, tables
from tests.tiny import tiny_model
from tests.tiny_text import byte_tokenizer


def test_parts_add_up_to_the_whole(tmp_path: Path) -> None:
    tiny_model(vocab_size=320, max_position_embeddings=2048).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    some = {"policies": ("plain", "ngram:8"), "rows": (1, 3), "context": 5, "repeats": 2}
    backend = "compact"
    result = measure(
        RoundPartsArgs(target=str(tmp_path), prompts=2, max_new_tokens=12, backend=backend, **some)  # type: ignore[arg-type]
    )
    assert [row["policy"] for row in result["rounds"]] == ["plain", "ngram:8"]
    for row in result["rounds"]:
        assert row["rounds"] >= 2 and row["pass"] > 0 and row["verdict"] > 0
        assert sum(row[phase] for phase in PHASES) == pytest.approx(row["total"])
    assert [(row["pass"], row["rows"]) for row in result["passes"]] == [
        ("compact", 1),
        ("compact", 3),
    ]
    for row in result["passes"]:
        assert min(row[part] for part in ("products", "head", "attention", "norms", "cache")) > 0
        assert 0 < sum(row[part] for part in PARTS) < 3 * row["total"]  # medians, each its own
    assert len(tables(result)) == 2


def test_a_compiled_pass_is_taken_apart(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    tiny_model(vocab_size=320, max_position_embeddings=2048).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    settings = RoundPartsArgs(
        target=str(tmp_path), backend="openvino", policies=(), rows=(2,), context=5, repeats=2
    )
    compact, compiled = measure(settings)["passes"]
    assert (compact["pass"], compiled["pass"]) == ("compact", "compiled")
    assert compiled["total"] > 0 and compiled["products"] + compiled["head"] > 0
