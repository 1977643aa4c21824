"""Rounds that fail, logs that cannot be written, devices that are late: texts go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from draftgym.decoding.model.target import Target
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.devices.device import EdgeDevice
from draftgym.serving.edge.server.witness import RoundLog
from tests.serving.edge.edges import PATIENT, Gathered, SetClock, plain, serving, text
from tests.serving.edge.raw import Raw, opening
from tests.serving.edge.test_faults_harm_nobody_else import AlwaysNothing, AlwaysOne, eventually

FULL = Path("/dev/full")
AT_ONCE: Any = {"sleep": lambda seconds: None}


@pytest.mark.parametrize("length", [10, 20_000], ids=["short", "longer than headers may be"])
def test_devices_come_back_after_a_round_that_failed(target: Target, length: int) -> None:
    class FailsOnce(AlwaysOne):
        """Its second plan fails."""

        plans = 0

        def plan(self) -> Any:
            """One token each."""
            self.plans += 1
            if self.plans == 2:
                raise RuntimeError("x" * length)
            return super().plan()

    with serving(target, FailsOnce) as edge:
        device = edge.device(target, **AT_ONCE)
        done = device.write(text(0))
        device.close()
    assert done.tokens == plain(target, text(0)) and done.reconnects == 1


@pytest.mark.skipif(not FULL.exists(), reason="this system has no file that is always full")
def test_a_log_on_a_full_disk_ends_and_rounds_go_on(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RoundLog(FULL)
    with serving(target) as edge:
        edge.rounds.witnesses = [log]
        device = edge.device(target)
        done = device.write(text(0))
        device.close()
    log.ended(edge.rounds.totals)
    assert done.tokens == plain(target, text(0)) and done.reconnects == 0
    assert capsys.readouterr().err.count("the log ends here") == 1


def test_a_correction_does_not_wait_for_somebody_elses_draft(target: Target) -> None:
    """Time stands still once the late device has made the round wait: nothing else may."""
    clock = SetClock()
    limits = replace(PATIENT, round_seconds=1.0, idle_seconds=1e9, open_seconds=1e9)
    rounds_of = partial(Gathered, payload="scalar", kept=5)
    with serving(target, "fixed", 2, limits, clock=clock, rounds_of=rounds_of) as edge:  # type: ignore[arg-type]
        late, prompt = Raw(edge), Raw(edge)
        late.send(opening(target, 90))
        prompt.send(opening(target, 91, temperature=0.01))
        late.asked_to_draft()
        verdict = prompt.asked_to_draft()
        position, sent = verdict.position + len(verdict.tokens), one_of_two()
        for token in (1, 2):  # at this temperature, one of them is none of the target's
            draft = wire.Draft(position=position, tokens=[token], chances=[0.5])
            prompt.send(wire.FromDevice(draft=draft))
            eventually(lambda: clock.awaited(1.0))
            clock.advance(1.0)
            said = next(told(prompt))
            if said.WhichOneof("what") == "rejected":
                break
            position += said.verdict.accepted + len(said.verdict.tokens)
        prompt.send(
            wire.FromDevice(correction=wire.Correction(position=position, distribution=sent))
        )
        assert next(told(prompt)).verdict.position == position
        late.close()
        prompt.close()


def one_of_two() -> Any:
    """Tokens 1 and 2 with the same chance."""
    ids, weights = (b"".join(n.to_bytes(2, "little") for n in some) for some in ([1, 2], [5, 5]))
    return wire.Distribution(ids=ids, weights=weights)


def told(raw: Raw) -> Iterator[Any]:
    """Messages but for shares."""
    return (one for one in raw.messages if one.WhichOneof("what") != "share")


def test_a_device_has_nobodys_past(target: Target) -> None:
    """Also one whose first text ends with its first token, before any round."""
    seen: list[tuple[float, int]] = []

    class Watching(AlwaysNothing):
        """Keeps what is known of the device."""

        def plan(self) -> Any:
            """Nothing for anybody."""
            users = self.cell.users
            seen.append((float(users.tokens[0, 0]), int(users.recent.sum())))
            return super().plan()

    with serving(target, Watching, 1, clock=SetClock()) as edge:
        for lengths in ((8,), (1, 8)):
            device, before = edge.device(target), len(seen)
            for length in lengths:
                device.write(text(0, length=length))
            device.close()
            eventually(lambda: not edge.rounds.members)
    assert seen[before] == seen[0] and seen[before - 1] != seen[0]


def test_a_device_whose_reader_fails_writes_its_next_text(target: Target) -> None:
    def fail(tokens: list[int]) -> None:
        raise BrokenPipeError

    with serving(target) as edge:
        device: EdgeDevice = edge.device(target)
        with pytest.raises(BrokenPipeError):
            device.write(text(0), fail)
        assert device.write(text(1)).tokens == plain(target, text(1))
        device.close()
