"""The wheel, built from the sdist of a tree without links, is the whole program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from draftgym import SpeculativeDecoder, make_policy
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("agents", "checkpoints", "decoding", "drafters", "envs", "policies", "rollouts", "serving")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
PARTS = (".json", ".jsonl", ".css", ".html", ".js", ".proto", ".pyi", ".safetensors", "py.typed")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """A command's standard output; its errors if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as a system without links checks them out: a link is a file with its target."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__")
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    (tree / "draftgym").mkdir()
    for path in (ROOT / "draftgym").iterdir():
        if path.is_symlink():
            (tree / "draftgym" / path.name).write_text(os.readlink(path))
        elif path.is_file():
            shutil.copy(path, tree / "draftgym")
        elif path.name != "__pycache__":
            shutil.copytree(path, tree / "draftgym" / path.name, ignore=ignore)
    return tree


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    return next(folder.glob("draftgym-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    build += ("--config-settings=--build-option=--compression=stored",)  # packing takes long
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *build, sdist, cwd=folder)
    return next(folder.glob("draftgym-*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, by a path, what it depends on; the folder of programs."""
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    programs = Path(sysconfig.get_path("scripts", "venv", scheme))
    python = programs / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        wheel,
        cwd=folder,
    )
    # A path, not a site folder: the editable install beside the dependencies stays inactive.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def sources() -> set[str]:
    """What a wheel must hold, by its name in there."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*")]
    ours = {path for path in files if path.name.endswith((".py", *PARTS))}
    face = [*(ROOT / "draftgym").glob("*.*"), *(ROOT / "draftgym").glob("hub/*.py")]
    inner = {f"draftgym/{path.relative_to(ROOT).as_posix()}" for path in ours}
    return inner | {path.relative_to(ROOT).as_posix() for path in face}


def test_the_wheel_holds_every_file_and_nothing_beside_draftgym(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    cards = {name for name in names if name.endswith("README.md")}
    assert names - cards == sources() and len(cards) >= 5


def test_the_sdist_holds_real_files_and_no_link(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    names = {member.name.partition("/")[2] for member in members}
    for name in sources():
        assert {name, name.removeprefix("draftgym/")} & names, name


@pytest.mark.real_model
def test_the_wheel_writes_plain_decodings_text_with_the_shipped_router(
    bare: Path, tmp_path: Path, real: tuple[Target, dict[str, Drafter]]
) -> None:
    where = run(bare / "python", "-c", "import draftgym; print(draftgym.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(bare.parent)
    prompt, exact = "Name three fruits.", ("--dtype", "float32", "--threads", "1")
    ask = ("generate", "--prompt", prompt, "--policy", "router", "--max-new-tokens", "16", *exact)
    text = run(bare / "draftgym", *ask, cwd=tmp_path)
    target, _ = real
    plain = SpeculativeDecoder(target, {}, make_policy("plain", {}, target))
    assert text == target.decode(plain.generate(prompt, max_new_tokens=16).tokens) + "\n"
    assert len(text.split()) > 3


def test_every_verb_of_the_wheel_helps(bare: Path, tmp_path: Path) -> None:
    code = (
        "import importlib\n"
        "from draftgym.cli import COMMANDS\n"
        "for home, what in COMMANDS.values():\n"
        "    assert callable(importlib.import_module('draftgym.' + home).main)\n"
        "print(len(COMMANDS))"
    )
    assert int(run(bare / "python", "-c", code, cwd=tmp_path)) > 10
    assert "train-router" in run(bare / "draftgym", "--help", cwd=tmp_path)
