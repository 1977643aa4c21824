"""Server and devices as processes: started, watched, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from draftgym.decoding.errors import DraftgymError
from draftgym.serving.edge.devices.command import READY
from draftgym.serving.edge.lab.args import EdgeLabArgs
from draftgym.serving.edge.lab.channels import user_name
from draftgym.serving.edge.lab.network import SERVER_ADDRESS, Network

PORT = 50071
LOADING = 600.0
"""Seconds that a process may take until it is there: many start at once."""
LOOK = 0.1
"""Seconds between two looks at a process."""
MEGABYTE = 2**20
PATIENCE = 20.0
"""Seconds that a process has to end when it is asked to."""
TRIES = 60
"""Connections in a row that may fail before a device gives up: a server takes a while to start."""


@dataclass
class Worker:
    """A process of the lab.

    Attributes:
        name: What it is called.
        command: How it is started.
        log: File of what it says, appended to.
        there: What it says when it is there.
        process: The newest one.
        starts: How often it was started.
        rss: Samples: when (Unix seconds), its process id, resident megabytes.
    """

    name: str
    command: Sequence[str]
    log: Path
    there: str
    process: subprocess.Popen[str] | None = None
    starts: int = 0
    rss: list[tuple[float, int, float]] = field(default_factory=list)
    _read: int = 0

    def start(self, *more: str) -> None:
        """Starts it, with more options."""
        self._read = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*self.command, *more],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} if self.name != "server" else None,
                start_new_session=True,  # Ctrl-C is for the lab, which ends the others
            )
        self.starts += 1

    @property
    def said(self) -> str:
        """What it has said since its newest start."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            return log.read().decode(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def wait_until_there(self) -> None:
        """Returns when it says that it is there.

        Raises:
            DraftgymError: It ended, or took too long.
        """
        until = time.monotonic() + LOADING
        while self.there not in self.said:
            if not self.alive or time.monotonic() > until:
                last = self.said.strip().rpartition("\n")[2]
                raise DraftgymError(f"{self.name} did not start: {last}", f"see {self.log}")
            time.sleep(LOOK)

    def go(self, line: str) -> None:
        """Tells it a line."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def send(self, number: int) -> None:
        """Sends it a signal; the process itself, as `ip` has become it."""
        if self.process is not None and self.alive:
            self.process.send_signal(number)

    def end(self) -> None:
        """Asks for its end, then does it."""
        for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
            if self.process is not None:
                self.send(number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)
                    return

    def kill(self) -> None:
        """Ends it without a word."""
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()

    def sample(self, now: float) -> None:
        """Notes its memory; a server's once it is there: loading and timing take more."""
        if self.name == "server" and self.there not in self.said:
            return
        if self.alive and self.process is not None:
            with suppress(OSError, IndexError):
                self.rss.append((now, self.process.pid, resident(self.process.pid)))


def resident(pid: int) -> float:
    """Megabytes of memory that a process has resident."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def server_worker(args: EdgeLabArgs, network: Network, folder: Path, users: int) -> Worker:
    """The server.

    Args:
        args: What was asked for.
        network: Where it runs.
        folder: Where it logs.
        users: Places that it has.
    """
    words = _words("serve", {
        "target": args.target, "scheduler": args.scheduler, "users": users,
        "longest-draft": args.longest_draft, "band-hertz": args.band_hertz,
        "payload": args.payload, "kept": args.kept, "server": args.server,
        "server-factor": args.server_factor, "dtype": args.dtype,
        "device": args.device, "threads": args.threads, "round-seconds": args.round_seconds,
        "host": SERVER_ADDRESS, "port": PORT, "radio": network.radio,
        "log": folder / "rounds.jsonl",
    })  # fmt: skip
    return Worker("server", network.inside(None, words), folder / "server.log", ": serving ")


def device_worker(
    args: EdgeLabArgs, network: Network, folder: Path, index: int, prompts: Path
) -> Worker:
    """A device; its journal is `journal-INDEX.json`."""
    kind = args.kind(index)
    words = _words("device", {
        "server": f"{SERVER_ADDRESS}:{PORT}", "prompts": prompts, "seconds": args.seconds,
        "max-new-tokens": args.max_new_tokens, "temperature": args.temperature,
        "seed": args.seed, "channel": folder / "channels.csv", "channel-user": user_name(index),
        "drafter": kind.drafter, "token-seconds": kind.token_seconds,
        "tokenizer": args.target, "dtype": args.drafter_dtype, "device": args.device,
        "threads": 1, "tries": TRIES, "state": journal_of(folder, index),
    })  # fmt: skip
    name = user_name(index)
    return Worker(
        name, network.inside(index, [*words, "--no-pace"]), folder / f"{name}.log", READY + "\n"
    )


def journal_of(folder: Path, index: int) -> Path:
    """What a device keeps."""
    return folder / f"{user_name(index)}.json"


def _words(verb: str, options: dict[str, object]) -> list[str]:
    given = [[f"--{name}", str(value)] for name, value in options.items() if value is not None]
    return [
        sys.executable,
        "-m",
        "draftgym",
        "edge",
        verb,
        *(one for pair in given for one in pair),
    ]
