"""`draftgym edge lab`: everything is started, writes for a while, and is looked at afterwards."""

from __future__ import annotations

import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from draftgym.decoding.files import read_json, write_json, write_text
from draftgym.rollouts.prompts.sets import interleave_categories, load_prompts
from draftgym.serving.edge.devices.journal import REMEDY
from draftgym.serving.edge.lab.args import EdgeLabArgs
from draftgym.serving.edge.lab.channels import relay_bands, write_channels
from draftgym.serving.edge.lab.checking import check_texts
from draftgym.serving.edge.lab.faults import PLACES, Fault, planned_faults, strangers_of
from draftgym.serving.edge.lab.network import Network, check_possible
from draftgym.serving.edge.lab.processes import (
    Worker,
    device_worker,
    journal_of,
    resident,
    server_worker,
)
from draftgym.serving.edge.lab.report import figures_of, show
from draftgym.serving.edge.protocol import require_edge

SAMPLE = 2.0
"""Seconds between two looks at memory."""
GRACE = 20.0
"""Seconds that a device has for its last round when time is up."""
OF_A_RUN = ("*.log", "*.jsonl", "device-*.json", "channels.csv")


def run_lab(args: EdgeLabArgs) -> dict[str, Any]:
    """Runs a lab, shows what happened, and writes it where it was asked to.

    Returns:
        Everything that was measured.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    args.validate()
    faults = planned_faults(args)
    require_edge()
    check_possible()
    with _folder(args.folder) as folder, _ended_by_signals():
        for index, lines in enumerate(prompt_lines(args)):
            write_text(folder / f"prompts-{index}.jsonl", lines)
        bands = relay_bands(write_channels(args, folder / "channels.csv"), args.band_hertz)
        strangers = strangers_of(faults)
        with _network(args, bands, strangers) as network:
            lab = Lab(args, network, folder, strangers)
            try:
                lab.start()
                lab.play(faults)
            except BaseException:
                lab.end(0.0)
                raise
            lab.end()
        texts = {one.name: read_json(path, REMEDY) for one, path in lab.journals()}
        others = {one.name: {"texts": one.texts, "unfinished": None} for one in faults}
        checked = check_texts(args, texts | others) if args.check else []
        found = figures_of(args, lab, network.counts, texts, checked, faults)
    show(found)
    if args.json is not None:
        write_json(args.json, found, None)
    return found


def prompt_lines(args: EdgeLabArgs) -> list[str]:
    """Each device's prompts as a file has them: the same ones, begun at another place."""
    prompts = interleave_categories(load_prompts(args.prompts))[: args.limit]
    lines = [
        json.dumps({"question_id": one.question_id, "category": one.category, "turns": [one.text]})
        for one in prompts
    ]
    starts = [i % len(lines) for i in range(args.devices)]
    return ["\n".join([*lines[start:], *lines[:start]]) + "\n" for start in starts]


def _network(args: EdgeLabArgs, bands: list[Any], strangers: int) -> Network:
    return Network(
        args.devices + strangers,
        [*bands, *bands[:1] * strangers],
        least_bits=1e3 * args.least_kbit,
        down_bits=None if args.down_mbit is None else 1e6 * args.down_mbit,
        delay=1e-3 * args.delay_ms,
        jitter=1e-3 * args.jitter_ms,
        loss=args.loss,
        queue_bytes=args.queue_bytes,
        seed=args.seed,
    )


@dataclass
class Lab:
    """What runs.

    Args:
        args: What was asked for.
        network: Where.
        folder: Where everybody logs.
        strangers: Networks beside the devices' for whoever does not belong here.

    Attributes:
        server: The server.
        devices: The devices.
        began: When they began, Unix seconds.
        relay_rss: Samples of the relay's memory; see `Worker.rss`.
        deaths: Who ended although it should not: name, when (seconds), its last words.
    """

    args: EdgeLabArgs
    network: Network
    folder: Path
    strangers: int = 0
    began: float = 0.0
    relay_rss: list[tuple[float, int, float]] = field(default_factory=list)
    deaths: list[tuple[str, float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        args, folder = self.args, self.folder
        users = args.devices + (PLACES if self.strangers else 0)
        self.server = server_worker(args, self.network, folder, users)
        self.devices = [
            device_worker(args, self.network, folder, i, folder / f"prompts-{i}.jsonl")
            for i in range(args.devices)
        ]

    def start(self) -> None:
        """Starts server and devices, and lets all devices begin at once."""
        _say("starting the server")
        self.server.start()  # alone: it may time its passes
        self.server.wait_until_there()
        _say(f"starting {len(self.devices)} devices")
        for one in self.devices:
            one.start("--wait")
        for one in self.devices:
            one.wait_until_there()
        self.began = time.time()
        self.network.tell(since=self.began)
        for one in self.devices:
            one.go(f"{self.began:.6f}")
        _say(f"writing for {self.args.seconds:g} s")

    def play(self, faults: list[Fault]) -> None:
        """Lets them write until time is up; what is to go wrong does."""
        steps, pause_until, sampled = self._steps(faults), 0.0, 0.0
        while (now := time.time()) < self.began + self.args.seconds:
            if now >= pause_until:
                pause_until = now + next(steps, math.inf)
            if now - sampled >= SAMPLE:
                sampled = now
                self._sample(now)
            time.sleep(0.02)
        steps.close()

    def _steps(self, faults: list[Fault]) -> Generator[float, None, None]:
        """Faults in turn, none before its time; what is yielded are seconds to wait."""
        for one in faults:
            yield max(0.0, self.began + one.at - time.time())
            yield from one.happen(self)

    def restart(self, device: int) -> None:
        """Starts a device again: it goes on from its journal, at the channel of the moment."""
        self.devices[device].start("--channel-since", f"{self.began:.6f}")

    def end(self, grace: float = GRACE) -> None:
        """Ends everybody, the server last.

        Args:
            grace: Seconds that devices have to end by themselves.
        """
        deadline = time.monotonic() + grace
        for one in self.devices:
            one.send(signal.SIGCONT)
        while any(one.alive for one in self.devices) and time.monotonic() < deadline:
            time.sleep(0.1)
        for one in (*self.devices, self.server):
            one.end()

    def journals(self) -> Iterator[tuple[Worker, Path]]:
        """Devices that have written, and what they keep."""
        for index, one in enumerate(self.devices):
            path = journal_of(self.folder, index)
            if path.exists():
                yield one, path

    def _sample(self, now: float) -> None:
        for one in (self.server, *self.devices):
            one.sample(now)
            if one.process is not None and not one.alive and one.process.returncode > 0:
                last = one.said.strip().rpartition("\n")[2]
                self.deaths.append((one.name, now - self.began, last))
                one.process = None
        relay = self.network.relay.pid
        self.relay_rss.append((now, relay, resident(relay)))


@contextmanager
def _folder(asked: Path | None) -> Iterator[Path]:
    """Where everybody logs; what an earlier run left there is removed."""
    if asked is None:
        with tempfile.TemporaryDirectory(prefix="draftgym-lab-") as made:
            yield Path(made)
        return
    asked.mkdir(parents=True, exist_ok=True)
    for pattern in OF_A_RUN:
        for path in asked.glob(pattern):
            path.unlink()
    yield asked.resolve()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends a lab as Ctrl-C does: everything is taken down."""

    def stop(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
