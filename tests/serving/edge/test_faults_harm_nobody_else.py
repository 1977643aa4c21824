"""Devices that die, stall, lie or speak another language: nobody else's text changes or stops."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.device import Written
from draftgym.serving.edge.protocol import METHOD, vocabulary_fingerprint
from draftgym.serving.edge.rounds import EdgeRounds
from draftgym.serving.edge.server import Access
from tests.serving.edge.edges import (
    LENGTH,
    PATIENT,
    Edge,
    SetClock,
    in_threads,
    plain,
    serving,
    text,
)

HONEST = 2
LONG = 1e9
"""Seconds that pass only where a test says so."""


class Raw:
    """A device of which a test says every message."""

    def __init__(self, edge: Edge, metadata: Any = None) -> None:
        self._channel = grpc.insecure_channel(edge.address)
        self._out: list[Any] = []
        self._there = threading.Condition()
        call = self._channel.stream_stream(
            METHOD,
            request_serializer=lambda one: (
                one if isinstance(one, bytes) else one.SerializeToString()
            ),
            response_deserializer=wire.FromServer.FromString,
        )
        self.messages = call(self._requests(), metadata=metadata)

    def _requests(self) -> Iterator[Any]:
        while True:
            with self._there:
                self._there.wait_for(lambda: bool(self._out))
                message = self._out.pop(0)
            if message is None:
                return
            yield message

    def send(self, message: Any) -> None:
        """Sends a message, or any bytes."""
        with self._there:
            self._out.append(message)
            self._there.notify()

    def asked_to_draft(self) -> Any:
        """The verdict that asks for a draft."""
        for message in self.messages:
            if message.WhichOneof("what") == "verdict" and message.verdict.next.length:
                return message.verdict
        raise AssertionError("no draft was asked for")

    def ended_by(self) -> str:
        """Name of the status that ends the stream."""
        try:
            for _ in self.messages:
                pass
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def close(self) -> None:
        """Ends the connection without a word."""
        self.send(None)
        self._channel.close()


def opening(target: Target, index: int = 99, **changes: Any) -> Any:
    """What a device opens."""
    one = text(index)
    facts = {
        "session": f"raw-{index}",
        "prompt": one.prompt,
        "max_new_tokens": LENGTH,
        "drafter": "small",
        "tokenizer": vocabulary_fingerprint(None, target.vocab_size),
        "report": wire.Report(snr_db=20, token_seconds=0.01),
    }
    return wire.FromDevice(open=wire.Open(**(facts | changes)))


@contextmanager
def others_write(edge: Edge, target: Target, temperature: float = 1.0) -> Iterator[None]:
    """Honest devices write meanwhile, and get plain decoding's texts."""
    asked = [[text(10 * i + j, temperature) for j in range(3)] for i in range(HONEST)]
    results: list[list[Written]] = []

    def write(index: int) -> list[Written]:
        device = edge.device(target, ("small", "ngram")[index % 2])
        try:
            return [device.write(one) for one in asked[index]]
        finally:
            device.close()

    thread = threading.Thread(
        target=lambda: results.extend(in_threads(*(partial(write, i) for i in range(HONEST))))
    )
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert len(results) == HONEST, "every honest device has its texts"
    for texts, done in zip(asked, results, strict=True):
        assert [one.tokens for one in done] == [plain(target, one) for one in texts]
        assert sum(one.connections for one in done) == 1


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


WRONG: dict[str, tuple[str, Callable[[Target], list[Any]]]] = {
    "garbage": ("INVALID_ARGUMENT", lambda target: [b"\xff\xff\xff\xff"]),
    "nothing": ("INVALID_ARGUMENT", lambda target: [wire.FromDevice()]),
    "a draft first": (
        "INVALID_ARGUMENT",
        lambda target: [wire.FromDevice(draft=wire.Draft(tokens=[1]))],
    ),
    "too large": ("RESOURCE_EXHAUSTED", lambda target: [b"\x0a" * 200_000]),
    "another tokenizer": ("FAILED_PRECONDITION", lambda target: [opening(target, tokenizer="x")]),
    "no session": ("INVALID_ARGUMENT", lambda target: [opening(target, session="")]),
    "a long session": ("INVALID_ARGUMENT", lambda target: [opening(target, session="x" * 999)]),
    "no prompt": ("INVALID_ARGUMENT", lambda target: [opening(target, prompt=[])]),
    "a long prompt": ("INVALID_ARGUMENT", lambda target: [opening(target, prompt=[5] * 65)]),
    "a strange token": ("INVALID_ARGUMENT", lambda target: [opening(target, prompt=[61])]),
    "a long text": ("INVALID_ARGUMENT", lambda target: [opening(target, max_new_tokens=999)]),
    "no text": ("INVALID_ARGUMENT", lambda target: [opening(target, max_new_tokens=0)]),
    "all written": ("INVALID_ARGUMENT", lambda target: [opening(target, written=[5] * LENGTH)]),
    "cold": ("INVALID_ARGUMENT", lambda target: [opening(target, temperature=-1.0)]),
    "no number": ("INVALID_ARGUMENT", lambda target: [opening(target, temperature=float("nan"))]),
    "an unknown drafter": ("INVALID_ARGUMENT", lambda target: [opening(target, drafter="mine")]),
    "an impossible channel": (
        "INVALID_ARGUMENT",
        lambda target: [opening(target, report=wire.Report(snr_db=float("nan")))],
    ),
    "an impossible speed": (
        "INVALID_ARGUMENT",
        lambda target: [opening(target, report=wire.Report(token_seconds=-1.0))],
    ),
    "two texts": ("INVALID_ARGUMENT", lambda target: [opening(target), opening(target, 98)]),
}


def test_what_may_not_be_said_ends_the_stream_that_says_it(target: Target) -> None:
    with serving(target, "fixed") as edge, others_write(edge, target):
        for what, (code, messages) in WRONG.items():
            raw = Raw(edge)
            for message in messages(target):
                raw.send(message)
            assert raw.ended_by() == code, what
            raw.close()


def test_a_second_text_is_refused_while_the_first_ones_prompt_is_read(target: Target) -> None:
    with serving(target, "fixed") as edge:
        reading, refused = threading.Event(), threading.Event()
        begin = edge.rounds._begin

        def slowly(asked: Any) -> Any:
            reading.set()
            refused.wait()
            return begin(asked)

        edge.rounds._begin = slowly  # type: ignore[method-assign]
        raw = Raw(edge)
        raw.send(opening(target))
        reading.wait()
        raw.send(opening(target, 98))
        try:
            assert raw.ended_by() == "INVALID_ARGUMENT"
        finally:
            refused.set()
        raw.close()


WRONG_DRAFTS: dict[str, dict[str, Any]] = {
    "longer than asked": {"tokens": [1] * 5},
    "a strange token": {"tokens": [61]},
    "elsewhere": {"tokens": [1], "position": 7},
    "an impossible channel": {"tokens": [1], "report": wire.Report(snr_db=float("inf"))},
}


def test_a_draft_that_cannot_be_ends_its_stream(target: Target) -> None:
    with serving(target, "fixed") as edge, others_write(edge, target):
        for what, draft in WRONG_DRAFTS.items():
            raw = Raw(edge)
            raw.send(opening(target))
            verdict = raw.asked_to_draft()
            facts = {"position": verdict.position + len(verdict.tokens)} | draft
            raw.send(wire.FromDevice(draft=wire.Draft(**facts)))
            assert raw.ended_by() == "INVALID_ARGUMENT", what
            raw.close()


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
