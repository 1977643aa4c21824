"""Truncated distributions: sampled from as they are sent, refused where they are none."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rejection import RejectionRule
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.payload import TruncatedRule, packed, quantised, unpacked
from draftgym.serving.edge.protocol import Refused
from draftgym.serving.edge.rounds import EdgeRounds
from tests.serving.edge.edges import LENGTH, Edge, in_threads, plain, serving, text
from tests.serving.edge.test_faults_harm_nobody_else import Raw, opening

KEPT = 5
Truncating = partial(EdgeRounds, payload="truncated", kept=KEPT)


@given(st.integers(2, 90), st.integers(1, 99), st.sampled_from([0.1, 1.0, 9.0]))
def test_what_is_sent_is_what_was_sampled_from(vocab: int, kept: int, spread: float) -> None:
    logits = spread * torch.randn(3, vocab, generator=torch.Generator().manual_seed(vocab))
    tokens, _, weights = TruncatedRule(1.0, 3, vocab, kept).draft(logits, [0, 1, 2])
    assert weights is not None and (weights == weights.round()).all()
    assert 1 <= int((weights > 0).sum(-1).max()) <= kept
    ids = tokens.tolist()
    again = unpacked(packed(weights), ids, vocab, kept)
    assert again is not None and torch.equal(again, weights)
    assert all(weights[row, token] > 0 for row, token in enumerate(ids))


def test_large_vocabularies_have_longer_ids() -> None:
    weights = torch.zeros(1, 70_000)
    weights[0, [3, 69_999]] = torch.tensor([1.0, 65_535.0])
    found = unpacked(packed(weights), [69_999], 70_000, 2)
    assert found is not None and torch.equal(found, weights)


def test_truncated_drafts_leave_the_law_of_the_text_as_it_is() -> None:
    """The first token of 6000 rounds, whose drafts come from a few tokens that the target dislikes.

    Seeds are fixed, so that it is the same 6000 every time.
    """
    vocab, temperature = 12, 0.8
    own, its = (
        3 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    )
    behind = torch.zeros(1, vocab)
    counts = torch.zeros(vocab)
    accepted = 0
    for seed in range(6000):
        tokens, logprobs, weights = TruncatedRule(temperature, 2 * seed, vocab, 4).draft(own, [0])
        sent = unpacked(packed(weights), tokens.tolist(), vocab, 4)
        rule = RejectionRule(temperature, 2 * seed + 1, vocab)
        draft = Proposal.chain(tokens, logprobs, sent)
        verdict = rule.verify(draft, torch.cat([its, behind]), 0)
        accepted += len(verdict.path)
        counts[int(tokens[0]) if verdict.path else verdict.next_token] += 1
    wanted = (its[0] / temperature).softmax(-1)
    drafted = quantised((own / temperature).softmax(-1), 4)[0]
    distance = (counts / counts.sum() - wanted).abs().sum() / 2
    assert (drafted / drafted.sum() - wanted).abs().sum() / 2 > 0.5 and 0 < accepted < 6000
    assert distance < 0.03


def write(edge: Edge, target: Target, name: str, temperature: float) -> Any:
    device = edge.device(target, name)
    try:
        return device.write(text(4, temperature))
    finally:
        device.close()


def test_devices_send_what_the_server_reads(target: Target) -> None:
    """Distributions where a text is sampled and a network has drafted; else token ids alone."""
    with serving(target, "fixed", rounds_of=Truncating) as edge:  # type: ignore[arg-type]
        works = [
            partial(write, edge, target, name, temperature)
            for name in ("small", "ngram")
            for temperature in (0.0, 1.0)
        ]
        greedy, sampled, copied, guessed = in_threads(*works)
    assert greedy.tokens == copied.tokens == plain(target, text(4))
    assert len(sampled.tokens) == len(guessed.tokens) == LENGTH
    assert sampled.accepted > 0
    extra = sampled.up / sampled.drafted - greedy.up / greedy.drafted
    assert 4 * KEPT / 2 < extra < 8 * KEPT + 20


def _distribution(ids: list[int], weights: list[int]) -> Any:
    numbers = [b"".join(one.to_bytes(2, "little") for one in some) for some in (ids, weights)]
    return wire.Distribution(ids=numbers[0], weights=numbers[1])


@pytest.mark.parametrize(
    "distributions",
    [
        [_distribution([1, 2], [5, 5])] * 2,
        [_distribution([], [])],
        [_distribution([1, 2], [5])],
        [_distribution([2, 1], [5, 5])],
        [_distribution([1, 1], [5, 5])],
        [_distribution([1, 61], [5, 5])],
        [_distribution([1, 2], [5, 0])],
        [_distribution([2, 3], [5, 5])],
        [_distribution([0, 1, 2, 3, 4, 5], [5] * 6)],
        [wire.Distribution(ids=b"\x01", weights=b"\x01")],
    ],
    ids=[
        *("too many", "empty", "uneven", "in disorder", "twice", "strange", "no chance"),
        *("another token's", "long", "half a number"),
    ],
)
def test_what_is_no_distribution_is_refused(distributions: list[Any]) -> None:
    with pytest.raises(Refused):
        unpacked(distributions, [1], 61, KEPT)


def test_distributions_that_nobody_asked_for_are_refused(target: Target) -> None:
    with serving(target, "fixed") as edge:
        raw = Raw(edge)
        raw.send(opening(target))
        verdict = raw.asked_to_draft()
        position = verdict.position + len(verdict.tokens)
        sent = wire.Draft(position=position, tokens=[1])
        sent.distributions.append(_distribution([1], [5]))
        raw.send(wire.FromDevice(draft=sent))
        assert raw.ended_by() == "INVALID_ARGUMENT"
        raw.close()
