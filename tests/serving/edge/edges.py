"""A server on loopback with tiny random models, and devices that write with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
import torch

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.target import Target
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.envs.cell.devices import AffineServer
from draftgym.envs.cell.settings import CellSettings, edge_setting
from draftgym.envs.cell.state import CellState
from draftgym.envs.radio.payload import Payload
from draftgym.envs.scheduler.planners import CellPlanner, RulePlanner
from draftgym.serving.edge.devices.device import EdgeDevice
from draftgym.serving.edge.devices.drafting import Drafting
from draftgym.serving.edge.devices.writing import Text
from draftgym.serving.edge.protocol import Limits, vocabulary_fingerprint
from draftgym.serving.edge.server.cell import WireCell
from draftgym.serving.edge.server.clock import Clock, SystemClock
from draftgym.serving.edge.server.rounds import EdgeRounds
from draftgym.serving.edge.server.server import Access, EdgeServer
from draftgym.serving.edge.server.table import WireTable
from tests.tiny import tiny_small_lm

LENGTH = 24
ARMS = ("small:4", "ngram:4")
PATIENT = Limits(prompt_tokens=64, new_tokens=LENGTH, round_seconds=300, idle_seconds=600)
"""Nobody is late and nobody is sent away, however slow the machine is."""
SETTINGS = CellSettings(
    setting=replace(edge_setting("multispin-llama2"), server=AffineServer(0.02, 0.002)),
    payload=Payload("tokens", 24),
    users=4,
    longest_draft=4,
)
MakePlanner = Callable[[CellState], CellPlanner]


def make_cell(users: int = 4, settings: CellSettings = SETTINGS) -> WireCell:
    table = WireTable(users, [parse_arm(one) for one in ARMS], settings.means, LENGTH)
    return WireCell(table, replace(settings, users=users))


def drafting(target: Target, name: str = "small") -> Drafting:
    """What a tiny device drafts with; its prompts are token ids."""
    drafter = tiny_small_lm(target) if name == "small" else NgramDrafter(shortest=1)
    return Drafting(drafter, None, None, vocabulary_fingerprint(None, target.vocab_size))


class SetClock:
    """Time goes on when a test says so; see `draftgym.serving.edge.server.clock.Clock`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sleeping: list[tuple[float, asyncio.Event, asyncio.AbstractEventLoop]] = []
        self._lock = threading.Lock()

    def now(self) -> float:
        """See `Clock.now`."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        there = asyncio.Event()
        one = (self.seconds + seconds, there, asyncio.get_running_loop())
        with self._lock:
            self._sleeping.append(one)
        try:
            await there.wait()
        finally:
            with self._lock:
                self._sleeping.remove(one)

    @property
    def sleepers(self) -> int:
        """How many wait."""
        return len(self._sleeping)

    def awaited(self, seconds: float) -> bool:
        """Whether somebody waits for no more than so many seconds."""
        with self._lock:
            return any(until <= self.seconds + seconds for until, *_ in self._sleeping)

    def advance(self, seconds: float) -> None:
        """Goes on, and wakes whose time has come."""
        with self._lock:
            self.seconds += seconds
            for until, there, loop in self._sleeping:
                if until <= self.seconds:
                    loop.call_soon_threadsafe(there.set)


class Gathered(EdgeRounds):
    """Begins when every place can be taken."""

    async def run(self) -> None:
        """See `EdgeRounds.run`."""
        while len(self._opening) < self.cell.shape[1]:
            await asyncio.sleep(0.01)
        await super().run()


@dataclass
class Edge:
    """A server that runs.

    Attributes:
        port: Where it listens.
        rounds: What it plays.
    """

    port: int
    rounds: EdgeRounds

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def device(self, target: Target, name: str = "small", **options: Any) -> EdgeDevice:
        """A device that connects to it."""
        settings = {"token_seconds": 0.0 if name == "ngram" else 0.01} | options
        connect = settings.pop("connect", partial(grpc.insecure_channel, self.address))
        return EdgeDevice(drafting(target, name), connect, **settings)


@contextmanager
def serving(
    target: Target,
    planner: str | MakePlanner = "heterogeneous@beta",
    users: int = 4,
    limits: Limits = PATIENT,
    access: Access | None = None,
    clock: Clock | None = None,
    port: int = 0,
    settings: CellSettings = SETTINGS,
    rounds_of: type[EdgeRounds] = EdgeRounds,
    host: str = "127.0.0.1",
) -> Iterator[Edge]:
    """Runs a server in a thread of its own."""
    make = partial(RulePlanner, planner) if isinstance(planner, str) else planner
    ready, made = threading.Event(), list[Edge]()
    ends: list[Callable[[], Any]] = []
    failed: list[BaseException] = []

    async def run() -> None:
        torch.set_num_threads(1)
        cell = make_cell(users, settings)
        rounds = rounds_of(target, cell, make, limits, clock or SystemClock())
        server = EdgeServer(rounds, host, port, access)
        await server.start()
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(partial(loop.call_soon_threadsafe, stop.set))
        made.append(Edge(server.port, rounds))
        ready.set()
        await stop.wait()
        await server.stop()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    if failed:
        raise failed[0]
    try:
        yield made[0]
    finally:
        ends[0]()
        thread.join()
        if failed:
            raise failed[0]


def prompt(index: int) -> list[int]:
    """Six random ids."""
    return torch.randint(4, 60, (6,), generator=torch.Generator().manual_seed(index)).tolist()


def text(index: int, temperature: float = 0.0, length: int = LENGTH, **options: Any) -> Text:
    return Text(prompt(index), length, temperature, seed=index, **options)


def plain(target: Target, one: Text) -> list[int]:
    """What plain decoding writes."""
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    ids = torch.tensor(list(one.prompt))
    return decoder.generate(ids, one.max_new_tokens, one.temperature, one.seed).tokens


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What some functions return that run at the same time; the first error of any."""
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = works[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
