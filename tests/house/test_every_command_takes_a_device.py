"""Whoever can choose the numbers that a target computes in can choose where it computes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for room in ("agents", "benchmarks", "drafters", "envs", "rollouts", "serving")
    for path in sorted((ROOT / room).rglob("*.py"))
}
CLASSES = {
    node.name: node
    for tree in SOURCES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
}


def options(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Names and defaults of a class's fields that have text as default, bases included."""
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            yield from options(CLASSES[base.id])
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            default = getattr(field.value, "value", None)
            if isinstance(default, str):
                yield field.target.id, default


CHOOSERS = {name: dict(options(node)) for name, node in CLASSES.items()}


@pytest.mark.parametrize("name", [name for name, fields in CHOOSERS.items() if "dtype" in fields])
def test_who_takes_a_dtype_takes_a_device(name: str) -> None:
    assert CHOOSERS[name].get("device") == "auto"


def test_the_device_that_was_asked_for_is_the_one_that_is_used() -> None:
    calls = [
        (path, call)
        for path, tree in SOURCES.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "load_target"
    ]
    told = [(path, ast.unparse(call)) for path, call in calls if "dtype" in ast.unparse(call)]
    assert len(told) >= 6, "the calls are found"
    forgotten = [(str(path), text) for path, text in told if ".device" not in text]
    assert not forgotten
