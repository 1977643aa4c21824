"""A user's mistake ends with text and a status, never with a stack trace; a kill saves first."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agents.hyperparameters import RouterPPO
from agents.router import RouterArgs, train_router
from decoding.errors import DraftgymError, check_number, exit_on_user_error
from drafters.training.build import DFlashSettings
from drafters.training.main import DFlashArgs, train
from drafters.training.trainer import TrainerConfig

ROOT = Path(__file__).resolve().parents[1]


def test_a_mistake_prints_problem_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise DraftgymError("the prompt is empty", "give some text")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: the prompt is empty\n  remedy: give some text\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_kill_runs_what_saves(sent: signal.Signals) -> None:
    before = signal.getsignal(sent)
    saved = []
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        try:
            os.kill(os.getpid(), sent)
            time.sleep(5)
        finally:
            saved.append(True)
    assert stopped.value.code == 130 and saved
    assert signal.getsignal(sent) is before


def test_user_errors_are_told_outside_the_main_thread_too() -> None:
    """Only a main thread may set signal handlers."""
    stopped: list[int] = []

    def work() -> None:
        with exit_on_user_error(stopped.append):
            raise DraftgymError("the prompt is empty")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stopped == [2]


def test_a_reader_that_leaves_ends_the_process_without_a_word() -> None:
    program = (
        "from decoding.errors import exit_on_user_error\n"
        "with exit_on_user_error():\n"
        "    for _ in range(100000): print('word', flush=True)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b"" and writer.wait(60) == 1
    writer.stderr.close()


def test_numbers_are_checked_against_their_limits() -> None:
    check_number("--rounds", 1, least=1)
    check_number("--seed", 7, least=0, most=7)
    for value, limits, says in [
        (0, {"least": 1}, "at least 1"),
        (0.0, {"above": 0}, "above 0"),
        (8, {"least": 0, "most": 7}, "at least 0 and at most 7"),
        (math.nan, {"least": 0}, "nan is not possible"),
        (math.inf, {"above": 0}, "inf is not possible"),
    ]:
        with pytest.raises(DraftgymError, match=says):
            check_number("--option", value, **limits)


def test_router_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    good = RouterArgs(run=tmp_path / "run", target="never-loaded")
    (tmp_path / "file").touch()
    for args, word in [
        (replace(good, rounds=0), "--rounds"),
        (replace(good, minutes=-1.0), "--minutes"),
        (replace(good, max_new_tokens=1), "--max-new-tokens"),
        (replace(good, latency_price=math.nan), "--latency-price"),
        (replace(good, seed=-1), "--seed"),
        (replace(good, ppo=RouterPPO(n_epochs=0)), "--ppo.n-epochs"),
        (replace(good, ppo=RouterPPO(gamma=1.5)), "--ppo.gamma"),
        (replace(good, ppo=RouterPPO(n_steps=1)), "--ppo.n-steps"),
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
        (replace(good, trainer=TrainerConfig(minutes=math.inf)), "minutes"),
        (replace(good, trainer=TrainerConfig(lr=-1e-3)), "trainer.lr"),
        (replace(good, drafter=DFlashSettings(block_size=1)), "block"),
        (replace(good, drafter=DFlashSettings(gamma=0)), "drafter.gamma"),
        (replace(good, drafter=DFlashSettings(draft_vocab=0)), "drafter.draft-vocab"),
        (replace(good, run=tmp_path / "file"), "--run"),
    ]:
        with pytest.raises(DraftgymError, match=word):
            train(args)
