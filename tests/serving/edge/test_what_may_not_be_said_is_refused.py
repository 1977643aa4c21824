"""Messages that may not be said are refused; nobody else's text changes or stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from draftgym.decoding.model.target import Target
from draftgym.serving.edge import edge_v1_pb2 as wire
from tests.serving.edge.edges import (
    LENGTH,
    serving,
)
from tests.serving.edge.raw import Raw, opening, others_write

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
