"""A stop token or the token limit ends a text at the same token, whatever was drafted behind it."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.policies.routers.rules import FixedPolicy

PROMPT = torch.tensor([5, 9, 5, 9, 5, 9, 7])


class Prophet(Drafter):
    """Drafts what the target is going to say, past the end of the text."""

    name = "prophet"
    max_draft_length = 8

    def __init__(self, text: list[int]) -> None:
        self.text = torch.cat([PROMPT, torch.tensor(text)])

    fingerprint = "made for a test"

    def new_state(self, capacity: int) -> None:
        """It remembers nothing."""

    def catch_up(self, state: None, context: DraftContext, full: bool = False) -> int:
        """It needs nothing."""
        return 0

    def propose(self, state: None, context: DraftContext, shape: DraftShape) -> Proposal:
        """The next tokens of the text."""
        start = len(context.tokens)
        tokens = self.text[start : start + shape.depth]
        return Proposal.chain(tokens, torch.zeros(len(tokens)))


@pytest.fixture
def long_text(target: Target) -> list[int]:
    """What plain decoding says without a stop token."""
    return SpeculativeDecoder(target, {}, PlainPolicy()).generate(PROMPT, 40).tokens


def first_of_its_kind(text: list[int], least: int) -> int:
    """The first index from `least` on whose token has not occurred before."""
    return next(i for i in range(least, len(text)) if text[i] not in text[:i])


@pytest.mark.parametrize("length", [1, 4, 8])
def test_a_drafted_stop_token_ends_the_text(
    target: Target, long_text: list[int], length: int
) -> None:
    end = first_of_its_kind(long_text, 3)
    ending = replace(target, stop_tokens=frozenset({long_text[end]}))
    decoder = SpeculativeDecoder(
        ending, {"prophet": Prophet(long_text)}, FixedPolicy(Arm("prophet", length))
    )
    streamed: list[int] = []
    result = decoder.generate(PROMPT, 40, on_tokens=streamed.extend)
    assert result.tokens == streamed == long_text[: end + 1]
    assert result.finish_reason == "stop"
    for item in result.rounds:
        assert item.record.accepted <= len(item.record.committed) <= item.record.accepted + 1


@pytest.mark.parametrize("limit", [1, 2, 5, 9])
def test_the_token_limit_ends_the_text(target: Target, long_text: list[int], limit: int) -> None:
    decoder = SpeculativeDecoder(
        target, {"prophet": Prophet(long_text)}, FixedPolicy(parse_arm("prophet:8"))
    )
    result = decoder.generate(PROMPT, limit)
    assert result.tokens == long_text[:limit] and result.finish_reason == "length"


def test_cache_and_signals_are_plain_decodings_when_a_drafted_stop_token_ends_the_text(
    target: Target, long_text: list[int]
) -> None:
    """Also the last observation of an episode describes the text, not what was dropped."""
    end = first_of_its_kind(long_text, 3)
    ending = replace(target, stop_tokens=frozenset({long_text[end]}))
    drafters = {"prophet": Prophet(long_text)}
    sessions = {}
    for arm in (Arm("prophet", 8), Arm("plain", 0)):
        session = Session(ending, PROMPT, GreedyRule(), 40, drafters)
        session.prefill()
        while not session.finished:
            play_round(session, arm)
        assert session.cache.length == len(session.tokens) - 1
        sessions[arm.drafter] = session
    drafted, plain = sessions["prophet"], sessions["plain"]
    assert drafted.tokens.tolist() == plain.tokens.tolist()
    torch.testing.assert_close(drafted.last_logits, plain.last_logits, rtol=1e-4, atol=1e-4)


def test_a_slow_reader_does_not_slow_decoding(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0)

    def tick() -> int:
        clock.now += 1
        return clock.now

    monkeypatch.setattr(time, "perf_counter", tick)
    reader = 1_000_000
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    result = decoder.generate(
        PROMPT, 4, on_tokens=lambda tokens: setattr(clock, "now", clock.now + reader)
    )
    rounds = sum(item.record.times.total + item.decide_seconds for item in result.rounds)
    assert clock.now > reader and 0 < rounds <= result.decode_seconds < reader
