"""Sequences that share a pass get what each would get alone, whatever their sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round, verify_batch
from draftgym.decoding.session import Session
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rules import make_rule
from tests.tiny import tiny_target

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
SHAPES = [(0, 9), (12, 1), (5, 4), (1, 1), (20, 7)]  # (tokens in the cache, new tokens)


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(61, (count,), generator=torch.Generator().manual_seed(seed))


def filled(target: Target, context: int, seed: int) -> KVCache:
    cache = target.decoder.new_cache(40)
    if context:
        target.decoder.forward([NewRows(cache, tokens(context, seed))])
        cache.keep(context)
    return cache


def assert_close(one: PassOutput, other: PassOutput) -> None:
    torch.testing.assert_close(one.logits, other.logits, **CLOSE)
    torch.testing.assert_close(one.hidden, other.hidden, **CLOSE)
    torch.testing.assert_close(one.taps, other.taps, **CLOSE)
    assert one.logits.argmax(-1).tolist() == other.logits.argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("last_only", [False, True])
def test_sequences_of_any_shape_share_a_pass(kind: str, last_only: bool) -> None:
    target = tiny_target(kind)
    caches = [filled(target, context, i) for i, (context, _) in enumerate(SHAPES)]
    new = [tokens(count, 100 + i) for i, (_, count) in enumerate(SHAPES)]
    starts = [len(piece) - 1 if last_only else 0 for piece in new]
    rows = [
        NewRows(cache, piece, logits_from=start)
        for cache, piece, start in zip(caches, new, starts, strict=True)
    ]
    together = target.decoder.forward(rows, (4, 0, 2))
    written = [
        cache.keys[:, :, : cache.length + len(piece)].clone()
        for cache, piece in zip(caches, new, strict=True)
    ]
    for i, (context, count) in enumerate(SHAPES):
        cache = filled(target, context, i)
        row = NewRows(cache, new[i], logits_from=starts[i])
        assert_close(together[i], target.decoder.forward([row], (4, 0, 2))[0])
        torch.testing.assert_close(written[i], cache.keys[:, :, : context + count], **CLOSE)


def test_taps_come_in_the_order_asked_for(target: Target) -> None:
    new = tokens(5, 1)
    forward = target.decoder.forward
    mixed = forward([NewRows(target.decoder.new_cache(9), new)], (4, 0, 2))[0].taps
    for column, layer in enumerate((4, 0, 2)):
        single = forward([NewRows(target.decoder.new_cache(9), new)], (layer,))[0].taps
        assert torch.equal(mixed[:, column], single[:, 0])


def test_one_token_at_a_time_equals_all_at_once(target: Target) -> None:
    text = tokens(14, 3)
    whole = target.decoder.forward([NewRows(target.decoder.new_cache(14), text)])[0].logits
    cache = target.decoder.new_cache(14)
    steps = []
    for token in text:
        steps.append(target.decoder.forward([NewRows(cache, token[None])])[0].logits)
        cache.keep(1)
    torch.testing.assert_close(torch.cat(steps), whole, **CLOSE)


def sessions_with_different_drafters(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> list[Session]:
    """Sessions at different lengths that record different taps, or none."""
    sessions = []
    for i, names in enumerate([["eagle3"], ["dflash"], [], ["eagle3", "dflash", "ngram"]]):
        rule = make_rule(None, temperature, i, target.vocab_size)
        chosen = {name: drafters[name] for name in names}
        session = Session(target, tokens(4 + 3 * i, i), rule, 20, chosen)
        session.prefill()
        for _ in range(i):
            play_round(session, parse_arm("plain"))
        sessions.append(session)
    return sessions


def draft(sessions: list[Session]) -> list[Proposal]:
    """Each session's first drafter proposes, with a different length each."""
    proposals = []
    for i, session in enumerate(sessions):
        drafter = next(iter(session.drafters.values()), None)
        if drafter is None:
            proposals.append(Proposal.empty())
            continue
        state = session.state_of(drafter)
        drafter.catch_up(state, session)
        proposals.append(drafter.propose(state, session, DraftShape(2 + i)))
    return proposals


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sessions_with_different_drafters_are_verified_together(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    sessions = sessions_with_different_drafters(target, drafters, temperature)
    twins = sessions_with_different_drafters(target, drafters, temperature)
    proposals = draft(sessions)
    together = verify_batch(sessions, proposals)
    for session, twin, proposal, (output, verdict) in zip(
        sessions, twins, proposals, together, strict=True
    ):
        alone, verdict_alone = verify_batch([twin], [proposal])[0]
        assert_close(output, alone)
        assert output.taps.shape[1] == len(session.tap_layers)
        assert (verdict.path, verdict.next_token) == (verdict_alone.path, verdict_alone.next_token)
        assert session.commit(proposal, verdict, output) == twin.commit(
            proposal, verdict_alone, alone
        )
        length = session.cache.length
        for layer in session.tap_layers:
            torch.testing.assert_close(
                session.features([layer], 0, length), twin.features([layer], 0, length), **CLOSE
            )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_written_together_are_those_written_alone(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    sessions = sessions_with_different_drafters(target, drafters, temperature)
    while active := [session for session in sessions if not session.finished]:
        proposals = []
        for session, proposal in zip(active, draft(active), strict=True):
            keep = session.remaining - 1
            proposals.append(
                Proposal.chain(proposal.tokens[:keep], proposal.logprobs[:keep])
                if len(proposal) > keep
                else proposal
            )
        for session, proposal, (output, verdict) in zip(
            active, proposals, verify_batch(active, proposals), strict=True
        ):
            session.commit(proposal, verdict, output)
    for session, alone in zip(
        sessions, sessions_with_different_drafters(target, drafters, temperature), strict=True
    ):
        while not alone.finished:
            play_round(alone, parse_arm("plain"))
        assert session.new_tokens == alone.new_tokens
