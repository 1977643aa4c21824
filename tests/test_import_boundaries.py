"""Rooms import in one direction, and deployment loads no training library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "decoding": set(),
    "drafters": {"decoding"},
    "policies": {"decoding"},
    "rollouts": {"decoding", "drafters", "policies"},
    "envs": {"decoding", "drafters", "rollouts"},
    "agents": {"decoding", "drafters", "policies", "rollouts", "envs"},
}
OURS = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {
    path.stem for path in ROOT.glob("*.py")
}


def imports_of(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        ours = set(imports_of(path)) & OURS
        assert ours <= MAY_IMPORT[room] | {room}, path.relative_to(ROOT)


def test_the_table_knows_every_room() -> None:
    assert set(MAY_IMPORT) | {"benchmarks", "tests"} == {
        path.parent.name for path in ROOT.glob("*/__init__.py")
    }


def test_deployment_loads_no_training_library() -> None:
    code = (
        "import sys, decoding.decoder, drafters.loading, policies.registry, policies.learned\n"
        "print([m for m in ('stable_baselines3', 'gymnasium', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
