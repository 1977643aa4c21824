"""Calibration times a piece of a round behind the pieces that decoding runs before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from draftgym.decoding.costs.measuring import median_seconds
from draftgym.decoding.costs.pieces import random_session
from draftgym.decoding.costs.timed_rounds import catching_up, drafting, verifying
from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session

CONTEXT = 48


@pytest.fixture
def session(target: Target, drafters: dict[str, Drafter]) -> Session:
    return random_session(target, drafters, CONTEXT)


@pytest.fixture
def events(drafters: dict[str, Drafter], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ran since it was cleared: "pass 5" (rows), "eagle3 drafts", "eagle3 catches up 3"."""
    told: list[str] = []

    def tell(owner: Any, name: str, describe: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            told.append(describe(result, *args))
            return result

        monkeypatch.setattr(owner, name, wrapped)

    tell(Decoder, "forward", lambda _, __, batch, *___: f"pass {len(batch[0].tokens)}")
    for name, drafter in drafters.items():
        tell(drafter, "propose", lambda *_, name=name: f"{name} drafts")
        tell(drafter, "catch_up", lambda missed, *_, name=name: f"{name} catches up {missed}")
    return told


@pytest.mark.parametrize("name", ["eagle3", "dflash", "ngram"])
def test_a_draft_comes_behind_a_pass_and_catching_up(
    session: Session, drafters: dict[str, Drafter], events: list[str], name: str
) -> None:
    play = drafting(session, drafters[name], DraftShape(2))
    for _ in range(2):  # each time anew
        events.clear()
        draft = play()
        assert events == ["pass 1", f"{name} catches up 1"]
        draft()
        assert events[2:] == [f"{name} drafts"]


@pytest.mark.parametrize("backlog", [1, 8])
def test_catching_up_comes_behind_a_pass(
    session: Session, drafters: dict[str, Drafter], events: list[str], backlog: int
) -> None:
    play = catching_up(session, drafters["eagle3"], backlog)
    for _ in range(2):
        events.clear()
        catch_up = play()
        assert events == ["pass 1"]
        catch_up()
        assert events[1:] == [f"eagle3 catches up {backlog}"]


def test_a_verification_comes_behind_a_draft_and_plain_decodings_behind_none(
    session: Session, drafters: dict[str, Drafter], events: list[str]
) -> None:
    drafted = verifying(session, 5, drafters["dflash"])
    plain = verifying(session, 1)
    events.clear()
    verify = drafted()
    assert events == ["dflash drafts"]
    verify()
    plain()()
    assert events[1:] == ["pass 5", "pass 1"]


def test_timing_leaves_the_session_as_it_was(
    session: Session, drafters: dict[str, Drafter]
) -> None:
    before = session.tokens.clone()
    rounds = {
        "verify": verifying(session, 9, drafters["eagle3"]),
        "draft": drafting(session, drafters["eagle3"], DraftShape(3, 8)),
        "catch up": catching_up(session, drafters["eagle3"], 4),
    }
    seconds = median_seconds(rounds, repeats=2)
    assert torch.equal(session.tokens, before)
    assert session.cache.length == CONTEXT and not session.finished
    assert seconds.keys() == rounds.keys() and min(seconds.values()) > 0


def test_only_the_piece_is_timed_and_the_warm_up_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def work(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    pieces = iter([99.0, 3.0, 5.0, 4.0])

    def play() -> Callable[[], object]:
        work(1000.0)
        return lambda: work(next(pieces))

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    assert median_seconds({"one": play}, repeats=3) == {"one": 4.0}
