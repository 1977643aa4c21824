"""`make figures`: other weights mean other folders, and what is there is not made again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TRACES = ("train.done", "heldout.done", "heldout-t1.done", "train-t1.done", "train-t06.done")
RESULTS = (*TRACES, "arms.json", "routing.json")
OTHERS = (
    "knowable.json",
    "switch_cost.json",
    "catch_up.json",
    "trace_speed.json",
    "entropy_threshold.json",
    "clock.json",
    "speed.json",
)

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one drafter."""
    (tmp_path / "checkpoints" / "eagle3").mkdir(parents=True)
    weights(tmp_path).write_bytes(b"first")
    return tmp_path


def weights(project: Path) -> Path:
    return project / "checkpoints" / "eagle3" / "model.safetensors"


def planned(project: Path) -> str:
    """The commands that would run."""
    command = ["make", "--dry-run", "-f", str(ROOT / "benchmarks" / "figures.mk")]
    # `make test` leaves its own flags to whoever it calls; they are not meant for this one.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=project, capture_output=True, text=True, timeout=1000, env=clean
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def folders(commands: str) -> set[str]:
    return set(re.findall(r"runs/[^/ ]+", commands))


def finish(project: Path, *names: str) -> None:
    """Pretends that some results are there."""
    (folder,) = folders(planned(project))
    (project / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (project / folder / name).touch()


def test_all_of_it_lies_in_one_folder_named_after_the_weights(project: Path) -> None:
    (before,) = folders(planned(project))
    assert re.fullmatch(r"runs/figures-[0-9a-f]{8}", before)
    assert folders(planned(project)) == {before}
    weights(project).write_bytes(b"second")
    (after,) = folders(planned(project))
    assert after != before
    weights(project).write_bytes(b"first")
    assert folders(planned(project)) == {before}


def test_every_result_is_made_once(project: Path) -> None:
    commands = planned(project)
    routers = ("routers.arms", "routers.knowable", "routers.routing")
    system = ("switch_cost", "catch_up", "trace_speed")
    for module in (*routers, *(f"system.{name}" for name in system)):
        assert commands.count(f"-m benchmarks.{module} ") == 1
    assert commands.count("draftgym collect ") == 5
    assert commands.count("draftgym evaluate ") == 2
    assert commands.index("benchmarks.routers.routing") < commands.index("benchmarks.routers.ship")
    assert commands.index("benchmarks.routers.ship") < commands.index("--against transformers")


def test_an_interrupted_run_goes_on_with_what_is_missing(project: Path) -> None:
    finish(project, *RESULTS)
    commands = planned(project)
    assert "draftgym collect" not in commands
    assert "benchmarks.routers.routing " not in commands
    assert "benchmarks.system.switch_cost" in commands
    assert "draftgym evaluate" in commands


def test_a_finished_run_ships_its_router_and_measures_nothing(project: Path) -> None:
    finish(project, *RESULTS, *OTHERS)
    commands = planned(project).strip().splitlines()
    assert len(commands) == 3
    assert "benchmarks.routers.ship" in commands[0]
    assert commands[1].startswith("cp ")
    assert "benchmarks.report" in commands[2]


def test_other_weights_make_everything_anew(project: Path) -> None:
    everything = planned(project).count("\n")
    finish(project, *RESULTS, *OTHERS)
    weights(project).write_bytes(b"second")
    assert planned(project).count("\n") == everything
