"""Devices that die, stall, lie or speak another language: nobody else's text changes or stops."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.devices.writing import Written
from draftgym.serving.edge.server.rounds import EdgeRounds
from draftgym.serving.edge.server.server import Access
from tests.serving.edge.edges import (
    LENGTH,
    PATIENT,
    SetClock,
    plain,
    serving,
    text,
)
from tests.serving.edge.raw import HONEST, Raw, opening, others_write

LONG = 1e9
"""Seconds that pass only where a test says so."""


def test_a_device_that_dies_in_mid_round_is_forgotten(target: Target) -> None:
    with serving(target, "fixed") as edge:
        with others_write(edge, target):
            for index in range(6):
                raw = Raw(edge)
                raw.send(opening(target, 50 + index))
                raw.asked_to_draft()
                raw.close()
        eventually(lambda: not edge.rounds.members)
        assert edge.rounds.totals.texts == 3 * HONEST


def test_a_device_that_stalls_is_late_and_then_sent_away(target: Target) -> None:
    clock = SetClock()
    limits = replace(PATIENT, round_seconds=1, idle_seconds=LONG, open_seconds=LONG)
    with serving(target, "fixed", limits=limits, clock=clock) as edge:
        raw = Raw(edge)
        raw.send(opening(target))
        verdict = raw.asked_to_draft()
        done = threading.Event()

        def time_goes_on() -> None:
            while not done.wait(0.01):
                clock.advance(0.3)

        ticking = threading.Thread(target=time_goes_on)
        ticking.start()
        device = edge.device(target)
        written = device.write(text(1, 0.0, 6))  # the round waits a second, then goes on
        device.close()
        assert written.tokens == plain(target, text(1, 0.0, 6))
        assert edge.rounds.totals.late > 0
        draft = wire.Draft(position=verdict.position + len(verdict.tokens), tokens=[1])
        raw.send(wire.FromDevice(draft=draft))
        assert raw.asked_to_draft().position == draft.position, "the late draft was verified"
        done.set()
        ticking.join()
        ended: list[str] = []
        reading = threading.Thread(target=lambda: ended.append(raw.ended_by()))
        reading.start()
        while reading.is_alive():  # it never sends another one
            clock.advance(LONG)
            reading.join(0.05)
        assert ended == ["DEADLINE_EXCEEDED"]
        eventually(lambda: not edge.rounds.members)


def test_a_device_that_says_nothing_has_no_place(target: Target) -> None:
    clock = SetClock()
    with serving(target, "fixed", clock=clock) as edge:
        raw = Raw(edge)
        ended: list[str] = []
        reading = threading.Thread(target=lambda: ended.append(raw.ended_by()))
        reading.start()
        while reading.is_alive():
            clock.advance(20)
            reading.join(0.05)
        assert ended == ["DEADLINE_EXCEEDED"] and not edge.rounds.members


def test_wrong_drafts_change_no_text(target: Target) -> None:
    """Also of a drafter that the server has never seen."""
    one = text(99)
    with serving(target, "fixed") as edge, others_write(edge, target):
        raw = Raw(edge)
        raw.send(opening(target, drafter_fingerprint="of another version"))
        tokens: list[int] = []
        draft: list[int] = []
        for message in raw.messages:
            if message.WhichOneof("what") != "verdict":
                continue
            verdict = message.verdict
            tokens += [*draft[: verdict.accepted], *verdict.tokens]
            if verdict.ending:
                break
            draft = [len(tokens) % 60] * verdict.next.length
            if draft:
                raw.send(wire.FromDevice(draft=wire.Draft(position=len(tokens), tokens=draft)))
        raw.close()
    assert tokens == plain(target, one)


def test_a_session_belongs_to_one_connection(target: Target) -> None:
    """The same text goes on at the newer one; another text under its name is refused."""
    with serving(target, "fixed") as edge, others_write(edge, target):
        first, thief, second = Raw(edge), Raw(edge), Raw(edge)
        first.send(opening(target))
        first.asked_to_draft()
        thief.send(opening(target, 98, session="raw-99"))
        assert thief.ended_by() == "ALREADY_EXISTS"
        second.send(opening(target))
        assert first.ended_by() == "ABORTED"
        assert second.asked_to_draft().tokens
        for one in (first, thief, second):
            one.close()


@pytest.mark.parametrize("told", [None, "wrong", "right"])
def test_only_who_has_the_token_may_connect(target: Target, told: str | None) -> None:
    with serving(target, "fixed", access=Access("right")) as edge:
        device = edge.device(target, token=told)
        if told == "right":
            assert device.write(text(1)).tokens == plain(target, text(1))
        else:
            with pytest.raises(DraftgymError, match="asks for another token"):
                device.write(text(1))
        device.close()
        eventually(lambda: not edge.rounds.members)


def test_a_full_cell_refuses_whom_it_has_no_room_for(target: Target) -> None:
    limits = replace(PATIENT, waiting=1)
    with serving(target, "fixed", users=1, limits=limits) as edge:
        raws = [Raw(edge) for _ in range(3)]
        raws[0].send(opening(target, 90))
        raws[0].asked_to_draft()
        raws[1].send(opening(target, 91))
        eventually(lambda: len(edge.rounds._opening) == 1)
        raws[2].send(opening(target, 92))
        assert raws[2].ended_by() == "RESOURCE_EXHAUSTED"
        raws[0].close()  # whoever waits has the place now
        assert raws[1].asked_to_draft().tokens
        for raw in raws[1:]:
            raw.close()


def test_a_reader_that_does_not_read_holds_nobody_up(target: Target) -> None:
    """Nor does what waits for it grow: verdicts become one."""
    with serving(target, AlwaysNothing) as edge:
        raw = Raw(edge)
        raw.send(opening(target))
        with others_write(edge, target):
            pass
        raw.close()
        eventually(lambda: not edge.rounds.members)


class AlwaysNothing:
    """Plans no drafts."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def plan(self) -> Any:
        """Nothing for anybody."""
        return self.cell.best_plan(self.cell.users.row * 0)

    def learn(self, played: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_device_goes_on_after_the_server_was_started_again(
    target: Target, temperature: float
) -> None:
    """A text that several servers wrote is the text that one writes."""
    one = text(5, temperature)
    ports, halves = [0], [threading.Event(), threading.Event()]
    told: list[int] = []

    def tell(tokens: list[int]) -> None:
        told.extend(tokens)
        for half, event in enumerate(halves, start=1):
            if len(told) >= half * LENGTH // 3:
                event.set()

    with serving(target, AlwaysOne) as edge:
        ports[0] = edge.port
        connect = lambda: grpc.insecure_channel(f"127.0.0.1:{ports[0]}")  # noqa: E731
        device = edge.device(target, connect=connect, sleep=lambda seconds: up.wait())
        results: list[Written] = []
        up = threading.Event()
        writing = threading.Thread(target=lambda: results.append(device.write(one, tell)))
        writing.start()
        halves[0].wait()
    for half in (1, None):
        with serving(target, AlwaysOne) as edge:
            ports[0] = edge.port
            up.set()
            if half is None:
                writing.join()
            else:
                halves[half].wait()
                up.clear()
    device.close()
    assert results[0].tokens == told == plain(target, one)
    assert results[0].connections >= 2


class AlwaysOne(AlwaysNothing):
    """Plans a token for everybody."""

    def plan(self) -> Any:
        """One token each."""
        return self.cell.best_plan(self.cell.users.row * 0 + 1)


def test_nothing_grows_with_the_texts_that_were_written(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions are forgotten with their texts, devices with their connections."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    begin = EdgeRounds._begin

    def begun(rounds: EdgeRounds, asked: Any) -> Any:
        session = begin(rounds, asked)
        alive.add(session)
        return session

    monkeypatch.setattr(EdgeRounds, "_begin", begun)
    with serving(target, "fixed", users=2) as edge:
        for index in range(8):
            device = edge.device(target)
            for part in range(2):
                device.write(text(10 * index + part, 0.0, 6))
            device.close()
        assert edge.rounds.totals.texts == 16
        eventually(lambda: not edge.rounds.members and not edge.rounds._opening)
        gc.collect()
        assert len(alive) <= 1


def eventually(true: Callable[[], bool]) -> None:
    """Waits until something is so; a test's own time limit ends what never is."""
    while not true():
        threading.Event().wait(0.01)
