"""Drafts come when they come, also while others are being verified; passes may be paced."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from draftgym.decoding.model.target import Target
from draftgym.envs.cell.devices import AffineServer
from draftgym.serving.edge.server import rounds
from draftgym.serving.edge.server.clock import SystemClock
from draftgym.serving.edge.server.member import Member
from draftgym.serving.edge.server.rounds import EdgeRounds
from draftgym.serving.edge.server.verifying import verify
from tests.serving.edge.edges import PATIENT, Gathered, SetClock, in_threads, plain, serving, text


def test_a_draft_that_comes_during_the_pass_harms_nobody(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, clock, released = [text(0), text(1)], SetClock(), threading.Event()
    limits = replace(PATIENT, round_seconds=1.0)
    with serving(target, "fixed", 2, limits, clock=clock, rounds_of=Gathered) as edge:

        def slow_pass(members: Sequence[Member]) -> None:
            """Lasts until the late device's draft is there."""
            if len(members) == 1 and not released.is_set():
                released.set()
                others = [one for one in edge.rounds.members if one not in members]
                while not any(one.arrived for one in others):
                    time.sleep(0.01)
            verify(members)

        def go_on() -> None:
            """Rounds do not wait for ever while the late device is not there."""
            while not released.is_set():
                clock.advance(1.0 if len(edge.rounds.members) == 2 else 0.0)
                time.sleep(0.01)

        monkeypatch.setattr(rounds, "verify", slow_pass)
        prompt = edge.device(target)
        late = edge.device(target, slowed=True, sleep=lambda seconds: released.wait() and None)
        works = [partial(one.write, what) for one, what in zip((prompt, late), asked, strict=True)]
        done = in_threads(*works, go_on)[:2]
        prompt.close()
        late.close()
    assert [one.tokens for one in done] == [plain(target, one) for one in asked]
    assert [one.connections for one in done] == [1, 1]


class PacedRounds(EdgeRounds):
    """Rounds whose passes take 100 s and 1 s for each device."""

    def __post_init__(self) -> None:
        self.paced = AffineServer(100.0, 1.0)
        super().__post_init__()


class SkippingClock(SystemClock):
    """Pays for the time that a pass is to take at once, and notes it."""

    def __init__(self) -> None:
        self.passes: list[float] = []

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        if 90 < seconds < 110:
            self.passes.append(seconds)
        else:
            await super().sleep(seconds)


def test_passes_take_what_they_are_said_to(target: Target) -> None:
    clock = SkippingClock()
    with serving(target, "fixed", 2, PATIENT, clock=clock, rounds_of=PacedRounds) as edge:
        device = edge.device(target)
        done = device.write(text(0))
        device.close()
    assert done.tokens == plain(target, text(0))
    assert len(clock.passes) == edge.rounds.totals.rounds > 0
    assert all(100 < seconds <= 101 for seconds in clock.passes)
