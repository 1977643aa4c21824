"""A user's mistake ends with text and a status, never with a stack trace; a kill saves first."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from draftgym.agents.common.settings import RouterPPO
from draftgym.agents.router.train import RouterArgs, train_router
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import user_path
from draftgym.drafters.training.build import DFlashSettings
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.main import DFlashArgs, train


def test_a_mistake_prints_problem_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise DraftgymError("the prompt is empty", "give some text")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: the prompt is empty\n  remedy: give some text\n"


KILLED = """
import os, signal, sys, time
from draftgym.decoding.errors import exit_on_user_error

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
with exit_on_user_error():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(60)
    finally:
        print("saved")
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_kill_runs_what_saves(sent: signal.Signals) -> None:
    """In a process of its own: a test worker that signals itself may be hit elsewhere, and die."""
    command = [sys.executable, "-c", KILLED, str(int(sent))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout) == (130, "saved\n"), ended.stderr


def test_a_reader_that_goes_ends_the_process_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `draftgym --help | head -1`: the status of a closed pipe, no trace, no second try."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as stopped, exit_on_user_error():
            print("the text")
            sys.exit(0)
    assert stopped.value.code == 141 and capsys.readouterr().err == ""


def test_what_a_terminal_lacks_is_printed_as_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    with exit_on_user_error():
        print("Grüße 🙂 \ud800")
    assert shown.getvalue() == b"Gr\\xfc\\xdfe \\U0001f642 \\ud800\n"


def test_paths_that_no_system_has_are_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x" * 5000, "~nobody-of-this-name/x", "\0"):
        with pytest.raises(DraftgymError, match="no getting at"):
            user_path(name)
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        Path("x" * 5000).stat()
    assert stopped.value.code == 2 and "remedy" in capsys.readouterr().err


def test_router_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    good = RouterArgs(run=tmp_path / "run", target="never-loaded")
    (tmp_path / "file").touch()
    for args, word in [
        (replace(good, rounds=0), "--rounds"),
        (replace(good, minutes=-1.0), "--minutes"),
        (replace(good, ppo=RouterPPO(n_envs=1, n_steps=1)), "--ppo.n-steps"),
        (replace(good, run=tmp_path / "file"), "--run"),
    ]:
        with pytest.raises(DraftgymError, match=word):
            train_router(args)


def test_drafter_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    good = DFlashArgs(corpus=tmp_path / "none", run=tmp_path / "run", target="never-loaded")
    (tmp_path / "file").touch()
    for args, word in [
        (replace(good, trainer=TrainerConfig(minutes=0)), "minutes"),
        (replace(good, trainer=TrainerConfig(batch_size=0)), "batch-size"),
        (replace(good, trainer=TrainerConfig(updates=0)), "--trainer.updates"),
        (replace(good, trainer=TrainerConfig(measure_updates=-1)), "measure-updates"),
        (replace(good, trainer=TrainerConfig(patience=-1)), "patience"),
        (replace(good, trainer=TrainerConfig(patience=2, measure_minutes=0)), "patience"),
        (replace(good, drafter=DFlashSettings(block_size=1)), "block"),
        (replace(good, run=tmp_path / "file"), "--run"),
    ]:
        with pytest.raises(DraftgymError, match=word):
            train(args)
