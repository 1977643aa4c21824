"""Probabilities with drafts: sampled from as they are sent, refused where they are none."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.proposal import Proposal
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.payload import chances_of, packed, quantised, unpacked
from draftgym.serving.edge.protocol import Refused
from draftgym.serving.edge.rules import DeviceRule, ScalarRule, ServerRule, device_rule, server_rule
from draftgym.serving.edge.server.rounds import EdgeRounds
from tests.serving.edge.edges import LENGTH, Edge, in_threads, plain, serving, text
from tests.serving.edge.test_faults_harm_nobody_else import Raw, opening

KEPT = 5


def carrying(payload: str) -> Any:
    """Rounds of this payload."""
    return partial(EdgeRounds, payload=payload, kept=KEPT)


@given(st.integers(2, 90), st.integers(1, 99), st.sampled_from([0.1, 1.0, 9.0]))
def test_what_is_sent_is_what_was_sampled_from(vocab: int, kept: int, spread: float) -> None:
    logits = spread * torch.randn(3, vocab, generator=torch.Generator().manual_seed(vocab))
    tokens, _, weights = DeviceRule(1.0, 3, vocab, kept).draft(logits, [0, 1, 2])
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


@pytest.mark.slow
@pytest.mark.parametrize("payload", ["truncated", "scalar"])
def test_probabilities_leave_the_law_of_the_text_as_it_is(payload: str) -> None:
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
        tokens, _, weights = DeviceRule(temperature, seed, vocab, 4).draft(own, [0])
        rule = server_rule(payload, temperature, seed, vocab)
        path, token = _verdict(rule, tokens.tolist(), packed(weights), torch.cat([its, behind]))
        accepted += len(path)
        counts[int(tokens[0]) if path else token] += 1
    wanted = (its[0] / temperature).softmax(-1)
    drafted = quantised((own / temperature).softmax(-1), 4)[0]
    distance = (counts / counts.sum() - wanted).abs().sum() / 2
    assert (drafted / drafted.sum() - wanted).abs().sum() / 2 > 0.5 and 0 < accepted < 6000
    assert distance < 0.03


def _verdict(rule: Any, tokens: list[int], sent: list[Any], logits: Any) -> tuple[list[int], int]:
    """What a server writes of a draft of which it is told as little as its rule reads."""
    vocab = logits.shape[1]
    weights = unpacked(sent, tokens, vocab, vocab)
    assert weights is not None
    logprobs = torch.tensor(chances_of(weights, tokens), dtype=torch.float64).log()
    whole = None if isinstance(rule, ScalarRule) else weights
    verdict = rule.verify(Proposal.chain(torch.tensor(tokens), logprobs, whole), logits, 0)
    if verdict.next_token != ScalarRule.UNSETTLED:
        return verdict.path, verdict.next_token
    return verdict.path, rule.settle(weights[len(verdict.path)])


@given(st.integers(0, 999), st.integers(1, 5))
def test_scalars_accept_what_whole_distributions_accept(seed: int, length: int) -> None:
    """The same coins fall, and what follows a rejected token is the same."""
    vocab = 12
    generator = torch.Generator().manual_seed(seed)
    own, its = (torch.randn(n, vocab, generator=generator) for n in (length, length + 1))
    tokens, _, weights = DeviceRule(1.0, seed, vocab, 4).draft(own, list(range(length)))
    sent = packed(weights)
    verdicts = [
        _verdict(kind(1.0, seed, vocab), tokens.tolist(), sent, its)
        for kind in (ServerRule, ScalarRule)
    ]
    assert verdicts[0] == verdicts[1]


@given(st.integers(0, 999), st.integers(1, 5))
def test_what_was_not_sampled_needs_no_correction(seed: int, length: int) -> None:
    vocab = 12
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(length + 1, vocab, generator=generator)
    tokens = torch.randint(vocab, (length,), generator=generator)
    proposal = Proposal.chain(tokens, torch.zeros(length, dtype=torch.float64))
    verdict = ScalarRule(1.0, seed, vocab).verify(proposal, logits, 0)
    assert verdict == ServerRule(1.0, seed, vocab).verify(proposal, logits, 0)
    assert 0 <= verdict.next_token < vocab


def test_a_round_that_is_played_again_comes_out_the_same() -> None:
    """Else a connection that breaks while a correction is sent would tilt the text's law."""
    opened = wire.Opened(vocab_size=12, payload=wire.SCALAR, kept=4)
    own, its = (torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) for n in (3, 4))
    device, server = device_rule(opened, 1.0, 5), server_rule("scalar", 1.0, 5, 12)
    told = []
    for again in (device, device_rule(opened, 1.0, 5)):
        tokens, _, weights = again.draft(own, [7, 8, 9])
        told.append(_verdict(server, tokens.tolist(), packed(weights), its))
        server.draft(own, [3])  # coins that fell elsewhere change nothing
    assert told[0] == told[1]


def write(edge: Edge, target: Target, name: str, temperature: float) -> Any:
    device = edge.device(target, name)
    try:
        return device.write(text(4, temperature))
    finally:
        device.close()


@pytest.mark.parametrize("payload", ["truncated", "scalar"])
def test_devices_send_what_the_server_reads(target: Target, payload: str) -> None:
    """Probabilities where a text is sampled and a network has drafted; else token ids alone."""
    with serving(target, "fixed", rounds_of=carrying(payload)) as edge:
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
    if payload == "truncated":
        assert 4 * KEPT / 2 < extra < 8 * KEPT + 20
    else:  # four bytes a token, and a message of a distribution a round
        assert 4 < extra < 4 + (8 * KEPT + 40) * sampled.rounds / sampled.drafted


def test_the_text_is_the_same_whether_scalars_or_distributions_are_sent(target: Target) -> None:
    texts = []
    for payload in ("truncated", "scalar"):
        with serving(target, "fixed", rounds_of=carrying(payload)) as edge:
            texts.append(write(edge, target, "small", 1.0).tokens)
    assert texts[0] == texts[1]


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


@pytest.mark.parametrize("told", [[0.5, 0.5], [0.0], [1.5], [float("nan")]])
def test_what_are_no_probabilities_is_refused(target: Target, told: list[float]) -> None:
    with serving(target, "fixed", rounds_of=carrying("scalar")) as edge:
        raw = Raw(edge)
        raw.send(opening(target, temperature=1.0))
        verdict = raw.asked_to_draft()
        position = verdict.position + len(verdict.tokens)
        raw.send(wire.FromDevice(draft=wire.Draft(position=position, tokens=[1], chances=told)))
        assert raw.ended_by() == "INVALID_ARGUMENT"
        raw.close()


@pytest.mark.parametrize("answer", ["at once", "another distribution"])
def test_corrections_that_do_not_belong_are_refused(target: Target, answer: str) -> None:
    """The token is one that the target gives no chance, so that it is rejected for sure."""
    sent = _distribution([1, 2], [3, 1])
    with serving(target, "fixed", rounds_of=carrying("scalar")) as edge:
        raw = Raw(edge)
        raw.send(opening(target, temperature=0.01))
        verdict = raw.asked_to_draft()
        position = verdict.position + len(verdict.tokens)
        if answer != "at once":
            for token in (1, 2):  # at this temperature, one of them is none of the target's
                draft = wire.Draft(position=position, tokens=[token], chances=[0.5])
                raw.send(wire.FromDevice(draft=draft))
                said = next(raw.messages)
                while said.WhichOneof("what") == "share":
                    said = next(raw.messages)
                if said.WhichOneof("what") == "rejected":
                    break
                position = said.verdict.position + 1 + len(said.verdict.tokens)
        correction = wire.Correction(position=position, distribution=sent)
        raw.send(wire.FromDevice(correction=correction))
        assert raw.ended_by() == "INVALID_ARGUMENT"
        raw.close()
