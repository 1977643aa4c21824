"""`draftgym serve` in processes of their own, copies of one that has imported all they need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tests.serving.clients.served import PATIENCE

ROOT = Path(__file__).resolve().parents[3]
STARTER = """
import gc, json, os, sys
from draftgym import cli
import draftgym.serving.batching.batcher, draftgym.serving.batching.policy_set
import draftgym.serving.http.app, draftgym.serving.http.main, draftgym.serving.http.server
import draftgym.serving.planning.predicted, transformers.models.llama.modeling_llama

gc.freeze()  # what all share is neither copied nor searched again
for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(told["folder"])
for file in (1, 2):
    os.dup2(os.open(told["output"], os.O_WRONLY | os.O_APPEND), file)
cli.run("serve", told["options"])
"""
"""Starts one server after another, says their ids, and how each ended."""


@dataclass
class Running:
    """A server that was started.

    Attributes:
        id: Its process.
        output: What it prints.
    """

    id: int
    output: Path
    status: int | None = None

    def __post_init__(self) -> None:
        self.ended = Event()

    def said(self) -> str:
        """All that it has printed."""
        return self.output.read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        if not self.ended.is_set():
            os.kill(self.id, number)

    def wait(self) -> int:
        """Its exit status, as `subprocess.Popen.returncode`; waits until it has ended."""
        assert self.ended.wait(PATIENCE), self.said()
        assert self.status is not None
        return self.status


class Starter:
    """Starts servers, one after another.

    Args:
        folder: Where their output goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    @contextmanager
    def server(self, options: Sequence[str], folder: Path | None = None) -> Iterator[Running]:
        """A server, started in a folder; killed at the end, unless it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self.started += 1
        output = self.folder / f"{self.started}.txt"
        output.touch()
        told = {"options": list(options), "folder": str(folder or self.folder)}
        print(json.dumps(told | {"output": str(output)}), file=self._process.stdin, flush=True)
        running = Running(int(self._process.stdout.readline()), output)
        waiting = Thread(target=self._await_end, args=(running, self._process.stdout))
        waiting.start()
        try:
            yield running
        finally:
            running.send_signal(signal.SIGKILL)
            waiting.join()

    @staticmethod
    def _await_end(running: Running, told: Any) -> None:
        running.status = int(told.readline())
        running.ended.set()

    def close(self) -> None:
        """Ends."""
        self._process.communicate()
