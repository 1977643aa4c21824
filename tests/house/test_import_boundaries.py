"""Rooms import in one direction, under one name, and decoding loads no training library."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "decoding": set(),
    "drafters": {"decoding"},
    "policies": {"decoding"},
    "rollouts": {"decoding", "drafters", "policies"},
    "envs": {"decoding", "drafters", "policies", "rollouts"},
    "serving": {"decoding", "drafters", "policies", "rollouts", "envs"},
    "agents": {"decoding", "drafters", "policies", "rollouts", "envs"},
}
NOT_ROOMS = {"draftgym", "benchmarks", "examples", "tests"}


@cache
def imports_of(path: Path) -> list[str]:
    """Modules that a file imports, anywhere in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            found.append(str(node.module))
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("draftgym.")}
        assert ours <= MAY_IMPORT[room] | {room}, path.relative_to(ROOT)


def test_the_table_knows_every_room() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(MAY_IMPORT) == rooms - NOT_ROOMS


def test_no_file_imports_a_room_by_its_folder() -> None:
    folders = [path for path in ROOT.glob("[!.]*/") if path.name != "build"]  # not .venv
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert ROOT / "docs" / "assets" / "draw.py" in files
    for path in files:
        assert not {name.partition(".")[0] for name in imports_of(path)} & set(MAY_IMPORT), path


def run(code: str, cwd: Path = ROOT) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=1000
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def imported() -> list[str]:
    """What an interpreter prints that imports first what decoding needs, then everything.

    From the checkout's root, where a folder could pass for a package.
    """
    code = (
        "import importlib, pathlib, sys, draftgym\n"
        "from draftgym import SpeculativeDecoder, load_drafters, load_target, make_policy\n"
        "import draftgym.policies.routers.learned\n"
        "heavy = {'stable_baselines3', 'gymnasium', 'tensorboard'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        f"rooms = {sorted(MAY_IMPORT)}\n"
        "for room in rooms:\n"
        "    for path in sorted(pathlib.Path(room).rglob('*.py')):\n"
        "        name = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')\n"
        "        importlib.import_module('draftgym.' + name)\n"
        "import draftgym.cli, benchmarks, train_router, train_scheduler, evaluate, generate\n"
        "files = [pathlib.Path(m.__file__).resolve() for m in list(sys.modules.values())\n"
        "         if getattr(m, '__file__', None)]\n"
        "here = [f for f in files if f.is_relative_to(pathlib.Path.cwd())]\n"
        "here = [f for f in here if 'site-packages' not in f.parts]\n"
        "twice = {f for f in here if files.count(f) > 1}\n"
        "print(len(here) > 150, sorted(map(str, twice)))"
    )
    return run(code).splitlines()


@pytest.mark.slow
def test_decoding_loads_no_training_library(imported: list[str]) -> None:
    assert imported[0] == "[]"


@pytest.mark.slow
def test_no_module_is_imported_under_two_names(imported: list[str]) -> None:
    assert imported[1:] == ["True []"]


@pytest.mark.parametrize(
    "code",
    ["import draftgym, gymnasium as gym", "import gymnasium as gym, draftgym"],
)
def test_importing_draftgym_registers_its_environments(code: str) -> None:
    printed = run(f"{code}; print([name for name in gym.registry if 'draftgym/' in name])")
    assert "draftgym/Router-v0" in printed and "draftgym/Scheduler-v0" in printed


@pytest.mark.slow
def test_gym_make_alone_finds_the_environments() -> None:
    code = (
        "import gymnasium as gym\n"
        "try: gym.make('draftgym:draftgym/RouterReplay-v0', traces='nowhere')\n"
        "except Exception as error: print(type(error).__name__)"
    )
    assert run(code) == "DraftgymError"


def test_the_face_has_what_it_promises() -> None:
    import draftgym

    assert set(draftgym.__all__) >= {"load_target", "load_drafters", "make_policy", "train_router"}
    for name in draftgym.__all__:
        assert getattr(draftgym, name).__doc__
