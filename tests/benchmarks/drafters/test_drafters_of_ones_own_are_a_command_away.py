"""`make drafters`: from prompts to a comparison, with commands that are understood."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tyro

from benchmarks.drafters.objectives import ObjectivesArgs
from draftgym.drafters.training.main import DFlashArgs, Eagle3Args, SmallLMArgs
from draftgym.rollouts.responses.ask import AskArgs
from draftgym.rollouts.responses.respond import RespondArgs

ROOT = Path(__file__).resolve().parents[3]
KINDS = {"eagle3": Eagle3Args, "dflash": DFlashArgs, "small-lm": SmallLMArgs}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def planned(folder: Path, *settings: str) -> list[Any]:
    """The commands that would run in a folder, as their programs read them."""
    make = ["make", "--dry-run", "-f", str(ROOT / "benchmarks" / "drafters.mk"), *settings]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(make, cwd=folder, capture_output=True, text=True, timeout=1000, env=clean)
    assert done.returncode == 0, done.stderr
    commands = done.stdout.replace("\\\n", " ").splitlines()
    return [read(shlex.split(one)) for one in commands if not one.startswith("touch ")]


def read(words: list[str]) -> Any:
    if words[1] == "-m":
        assert words[2] == "benchmarks.drafters.objectives"
        return tyro.cli(ObjectivesArgs, args=words[3:])
    if words[1] == "train-drafter":
        return tyro.extras.subcommand_cli_from_dict(KINDS, args=words[2:])
    return tyro.cli({"ask": AskArgs, "respond": RespondArgs}[words[1]], args=words[2:])


def test_drafters_are_trained_on_what_their_target_writes_and_compared(tmp_path: Path) -> None:
    settings = ["TARGET=org/some-model", "DEVICE=cuda", "TEXTS=70", "MINUTES=2", "BATCH=9"]
    asked, answered, *trained_and_compared = planned(tmp_path, *settings)
    assert (asked.target, asked.device, asked.texts) == ("org/some-model", "cuda", 70)
    assert Path(answered.prompts).parent == asked.out
    trained = [one for one in trained_and_compared if not isinstance(one, ObjectivesArgs)]
    assert {type(one) for one in trained} == set(KINDS.values())
    for one in trained:
        assert (one.corpus, one.target, one.init) == (answered.out, "org/some-model", None)
        assert (one.trainer.minutes, one.trainer.batch_size) == (2, 9)
    for one in trained_and_compared:
        if isinstance(one, ObjectivesArgs):
            assert one.prompts == "train"  # nothing is chosen by held-out prompts
            assert one.baseline in {name.partition("=")[0] for name in one.checkpoints}


def test_they_go_on_from_those_that_are_there(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / "mine" / f"{kind}-some-model").mkdir(parents=True)
    commands = planned(tmp_path, "TARGET=org/some-model", "FROM=mine")
    for one in commands:
        if isinstance(one, Eagle3Args | DFlashArgs | SmallLMArgs):
            assert str(one.init).startswith("mine/")
        if isinstance(one, ObjectivesArgs):
            assert [name.partition("=")[0] for name in one.checkpoints] == ["shipped", "new"]
            assert one.baseline == "shipped"
