"""What README and pages say exists: code, commands, options, names, files, links, pictures."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest

import draftgym
from draftgym.cli import COMMANDS, run

ROOT = Path(__file__).resolve().parents[2]
DRAW = ROOT / "docs" / "assets" / "draw.py"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = ("agents", "decoding", "drafters", "envs", "policies", "rollouts", "serving")
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<kind>\w*)\n(?P<body>.*?)^(?P=fence)$", re.M | re.S)
SEVERAL = {"train-drafter": ("eagle3", "dflash", "small-lm"), "edge": ("serve", "device", "lab")}
"""Verbs with programs of their own behind them."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, kind: str) -> list[str]:
    """The page's fenced blocks of a language."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [match["body"] for match in found if match["kind"] == kind]


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, as words: whole lines in blocks, pieces between backticks."""
    text = page.read_text(encoding="utf-8")
    shell = "".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [*re.findall(r"\$\((.*?)\)", shell), *re.sub(r"\$\(.*?\)", "", shell).splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [words for line in lines if (words := line.partition("#")[0].split())]


@cache
def helped(program: str, *words: str) -> str:
    """What a verb (or, with dots, a module) answers to --help."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", [program, *words, "--help"])
        with pytest.raises(SystemExit) as stopped:
            if "." in program:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
            else:
                run(program)
    assert not stopped.value.code, out.getvalue()
    return out.getvalue()


def check_options(program: str, words: list[str]) -> None:
    """Every option among the words is one of the program's."""
    first = [words[0]] if words and words[0] in SEVERAL.get(program, ()) else []
    if "--scheduler" in words and program == "evaluate":
        first = ["--scheduler"]
    for word in words:
        if re.fullmatch(r"--[a-z][\w.-]*", word) and word not in ("--help", "--version"):
            answer = helped(program, *first)
            assert re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", answer), f"{program} {word}"


def resolve(name: str) -> object:
    """What a dotted name stands for: a module, or something in one."""
    if name.startswith("ray.rllib.") and importlib.util.find_spec("tree") is None:
        return None  # RLlib lacks packages that no extra of ours brings (docs/scaling.md)
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise AssertionError(f"{name} is nothing")


@pages
def test_python_compiles_and_its_imports_resolve(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert alias.name not in ROOMS, f"import draftgym.{alias.name}"
                    resolve(alias.name)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    resolve(f"{node.module}.{alias.name}")


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    for words in commands(page):
        for i in range(len(words)):
            rest = words[i + 1 :]
            if words[i] == "draftgym" and rest and re.fullmatch(r"(?!import)[a-z-]+", rest[0]):
                assert rest[0] in COMMANDS, " ".join(words)
                check_options(rest[0], rest[1:])
            elif words[i : i + 2] == ["python", "-m"] and rest[1].startswith("benchmarks."):
                check_options(rest[1], rest[2:])
            elif words[i] == "python" and rest and rest[0].endswith(".py"):
                assert (ROOT / rest[0]).is_file(), rest[0]
            elif words[0] == "make" and i:
                assert words[i] in verbs or "=" in words[i], " ".join(words)


@pages
def test_names_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\b(?:draftgym|benchmarks)(?:\.[A-Za-z_]\w*)+", text)):
        resolve(name)
    for path in set(re.findall(r"(?<![\w/.])(?:\w+/)+\w+\.(?:py|toml|yml|mk)\b", text)):
        assert (ROOT / path).is_file(), path


def links(page: Path) -> Iterator[str]:
    """Targets of the page's links and pictures that are files."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#", "mailto:")):
            yield target.partition("#")[0]


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        assert (page.parent / target).exists(), target


def test_the_reference_has_every_public_name_and_verb() -> None:
    text = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    for name in draftgym.__all__:
        assert f"[`{name}`]" in text, name
    for verb, (_, what) in COMMANDS.items():
        assert f"| `draftgym {verb}` | {what} |" in text, verb


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.real_model
def test_the_readmes_ten_lines_print_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks(ROOT / "README.md", "python")[0]
    exec(compile(code, "README.md", "exec"), {})  # what a reader would paste
    assert capsys.readouterr().out.strip() == blocks(ROOT / "README.md", "text")[0].strip()


def test_pictures_say_what_the_pages_say() -> None:
    drawing = runpy.run_path(str(DRAW))
    for name, draw in drawing["PICTURES"].items():
        assert (DRAW.parent / name).read_text(encoding="utf-8") == draw(), "run docs/assets/draw.py"
    assert {room for row in drawing["ROOMS"] for room, _ in row} == set(ROOMS)
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == {*ROOMS, "draftgym", "benchmarks", "tests"}
