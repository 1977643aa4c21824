"""Drafts come when they come, also while others are being verified."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from draftgym.decoding.model.target import Target
from draftgym.serving.edge import rounds
from draftgym.serving.edge.member import Member
from draftgym.serving.edge.verifying import verify
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
