"""A device that is killed and started again goes on with its text, from the file it keeps."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.serving.edge.devices.journal import Journal
from draftgym.serving.edge.server.witness import BaseStation, RoundFacts, RoundLog
from tests.serving.edge.edges import plain, serving, text


class Killed(Exception):
    """Stands for the end of the process: nothing after it is written."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_killed_device_writes_plain_decodings_text(
    target: Target, tmp_path: Path, temperature: float, rounds: int
) -> None:
    asked = [text(i, temperature) for i in range(2)]
    with serving(target, users=1) as edge:
        for life in (rounds, None):
            journal, device, told = Journal(tmp_path / "state.json"), edge.device(target), 0

            def tell(tokens: list[int], life: int | None = life, kept: Journal = journal) -> None:
                nonlocal told
                kept.save()
                told += 1
                if told == life:
                    raise Killed

            try:
                for index in range(len(journal.done), len(asked)):
                    session, written = journal.begin(asked[index], f"text-{index}")
                    device.write(asked[index], tell, session, written)
            except Killed:
                assert journal.current is not None, "it was killed in the middle of a text"
            finally:
                device.close()
    kept = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    assert kept["unfinished"] is None
    assert [one["tokens"] for one in kept["texts"]] == [plain(target, one) for one in asked]
    assert kept["texts"][0]["connections"] == 2


def test_what_is_no_journal_or_of_another_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    Journal(path).begin(text(0), "a")
    journal = Journal(path)
    journal.begin(text(0), "a")
    journal.save()
    with pytest.raises(DraftgymError, match="another text"):
        Journal(path).begin(text(1), "b")
    journal.current[1].finish_reason = "length"  # type: ignore[index]
    journal.save()
    again = Journal(path)
    again.check(0, text(0), "a")
    with pytest.raises(DraftgymError, match="another text"):
        again.check(0, text(1), "a")
    unknown = '{"texts": [], "unfinished": 1}'
    for damaged in ("{", "{}", '{"texts": 3, "unfinished": null}', unknown):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(DraftgymError, match="begun anew"):
            Journal(path)


def test_a_slowed_device_takes_its_time_and_reports_it(target: Target) -> None:
    slept: list[float] = []
    with serving(target, users=1) as edge:
        device = edge.device(target, token_seconds=7.0, slowed=True, sleep=slept.append)
        done = device.write(text(0))
        device.close()
        assert done.tokens == plain(target, text(0))
        assert device.report().token_seconds == 7.0
    assert done.drafting == pytest.approx(7.0 * done.drafted)
    assert sum(slept) == pytest.approx(7.0 * done.drafted, abs=0.5 * done.drafted)


class Listening:
    """Hears everything; a `Witness`."""

    def __init__(self) -> None:
        self.plans: list[dict[str, float]] = []
        self.rounds: list[RoundFacts] = []

    def planned(self, shares: Any) -> None:
        """See `Witness.planned`."""
        self.plans.append(dict(shares))

    def played(self, facts: RoundFacts) -> None:
        """See `Witness.played`."""
        self.rounds.append(facts)

    def ended(self, totals: Any) -> None:
        """See `Witness.ended`."""


def test_witnesses_hear_of_every_plan_and_round(target: Target, tmp_path: Path) -> None:
    path, listening = tmp_path / "radio", Listening()
    station = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    station.bind(str(path))
    log = RoundLog(tmp_path / "rounds.jsonl")
    with serving(target, users=1) as edge:
        edge.rounds.witnesses = [listening, BaseStation(path), BaseStation(tmp_path / "no"), log]
        device = edge.device(target)
        done = device.write(text(0))
        device.close()
    log.ended(edge.rounds.totals)
    assert sum(sum(one.committed) for one in listening.rounds) == len(done.tokens) - 1
    assert sum(sum(one.drafted) for one in listening.rounds) == done.drafted
    assert sum(sum(one.accepted) for one in listening.rounds) == done.accepted
    assert {tuple(one) for one in listening.plans} <= {("127.0.0.1",), ()}
    assert all(0 <= sum(one.values()) <= 1 + 1e-9 for one in listening.plans)
    assert json.loads(station.recv(65536)) == listening.plans[0]
    station.close()
    logged = (tmp_path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(logged) == len(listening.rounds) + 1
    assert json.loads(logged[-1])["totals"]["committed"] == edge.rounds.totals.committed
