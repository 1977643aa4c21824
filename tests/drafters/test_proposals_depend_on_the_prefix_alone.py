"""A proposal is a function of the committed prefix: earlier drafters leave no trace in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.suffix.drafter import SuffixDrafter

NAMES = ["eagle3", "dflash", "small", "ngram", "suffix"]
HISTORIES = {
    "plain": ["plain"],
    "eagle3": ["eagle3:4"],
    "dflash": ["dflash:4"],
    "small": ["small:4"],
    "ngram": ["ngram:6"],
    "suffix": ["suffix:6", "suffix:4x9"],
    "mixed": ["eagle3:2", "dflash:4", "plain", "ngram:3", "small:3", "dflash:1", "eagle3:5"],
    "trees": ["eagle3:4x20", "dflash:3x30", "plain", "small:3x9", "eagle3:2x5", "dflash:4"],
}
TREES = {"eagle3": ["eagle3:1x4", "eagle3:5x24"], "dflash": ["dflash:2x6", "dflash:4x24"]}
PROMPT = torch.tensor([5, 9, 5, 9, 5, 9, 7])
WRITTEN = 24


@pytest.fixture(scope="module")
def drafters(drafters: dict[str, Drafter]) -> dict[str, Drafter]:
    """Suffix decoding, too."""
    return {**drafters, "suffix": SuffixDrafter()}


def write(
    target: Target, drafters: dict[str, Drafter], arms: Sequence[str], temperature: float
) -> Session:
    """A session with exactly `WRITTEN` tokens written by cycling through `arms`."""
    rule = make_rule(None, temperature, 0, target.vocab_size)
    session = Session(target, PROMPT, rule, 60, drafters)
    session.prefill()
    session.max_new_tokens = WRITTEN  # rounds stop there, whatever they draft
    step = 0
    while not session.finished:
        play_round(session, parse_arm(arms[step % len(arms)]))
        step += 1
    session.max_new_tokens = 60
    return session


def propose(session: Session, drafter: Drafter, shape: DraftShape | int) -> Proposal:
    """Catches up and proposes (a number asks for a chain) without playing a round."""
    state = session.state_of(drafter)
    drafter.catch_up(state, session)
    shape = DraftShape(shape) if isinstance(shape, int) else shape
    return drafter.propose(state, session, shape)


def assert_same(one: Proposal, other: Proposal) -> None:
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.parents.tolist() == other.parents.tolist()
    torch.testing.assert_close(one.logprobs, other.logprobs, rtol=1e-5, atol=1e-5)


def top_length(drafter: Drafter) -> int:
    return min(6, drafter.max_draft_length)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_history_of_a_prefix_gives_the_same_proposal(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    sessions = [write(target, drafters, arms, temperature) for arms in HISTORIES.values()]
    assert len({tuple(session.tokens.tolist()) for session in sessions}) == 1
    for drafter in map(drafters.__getitem__, NAMES):
        proposals = [propose(session, drafter, top_length(drafter)) for session in sessions]
        assert len(proposals[0]) > 0
        for other in proposals[1:]:
            assert_same(proposals[0], other)


@pytest.mark.parametrize("name", NAMES)
def test_lazy_catch_up_equals_catching_up_after_every_round(
    target: Target, drafters: dict[str, Drafter], name: str
) -> None:
    drafter = drafters[name]
    lazy = Session(target, PROMPT, make_rule(None, 0.0, 0, target.vocab_size), 60, drafters)
    eager = Session(target, PROMPT, make_rule(None, 0.0, 0, target.vocab_size), 60, drafters)
    lazy.prefill()
    eager.prefill()
    backlog = 0
    for _ in range(12):
        play_round(lazy, parse_arm("plain"))
        play_round(eager, parse_arm("plain"))
        backlog += drafter.catch_up(eager.state_of(drafter), eager)
    assert drafter.catch_up(lazy.state_of(drafter), lazy) == backlog > 12
    assert drafter.catch_up(lazy.state_of(drafter), lazy) == 0
    length = top_length(drafter)
    assert_same(
        drafter.propose(lazy.state_of(drafter), lazy, DraftShape(length)),
        drafter.propose(eager.state_of(drafter), eager, DraftShape(length)),
    )
    for one, other in zip(encoded(lazy, drafter), encoded(eager, drafter), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def encoded(session: Session, drafter: Drafter) -> list[Tensor]:
    """What a neural drafter remembers of the committed positions."""
    cache = session.state_of(drafter)
    if not isinstance(cache, KVCache):
        return []
    return [cache.keys[:, :, : cache.length], cache.values[:, :, : cache.length]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_a_shorter_draft_is_the_beginning_of_a_longer_one(
    target: Target, drafters: dict[str, Drafter], name: str, temperature: float
) -> None:
    drafter = drafters[name]
    session = write(target, drafters, ["plain"], temperature)
    full = propose(session, drafter, top_length(drafter))
    for length in range(1, len(full)):
        short = propose(session, drafter, length)
        assert short.tokens.tolist() == full.tokens[:length].tolist()
        torch.testing.assert_close(short.logprobs, full.logprobs[:length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_proposing_twice_gives_the_same(
    target: Target, drafters: dict[str, Drafter], name: str, temperature: float
) -> None:
    drafter = drafters[name]
    session = write(target, drafters, HISTORIES["mixed"], temperature)
    first = propose(session, drafter, top_length(drafter))
    for other in NAMES:  # what the others draft in between does not matter either
        propose(session, drafters[other], 2)
    assert_same(propose(session, drafter, top_length(drafter)), first)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", TREES)
def test_every_history_of_a_prefix_gives_the_same_tree(
    target: Target, drafters: dict[str, Drafter], name: str, temperature: float
) -> None:
    drafter = drafters[name]
    sessions = [write(target, drafters, arms, temperature) for arms in HISTORIES.values()]
    for arm in TREES[name]:
        shape = parse_arm(arm).shape
        trees = [propose(session, drafter, shape) for session in sessions]
        assert not trees[0].is_chain
        for other in trees[1:]:
            assert_same(trees[0], other)
        propose(sessions[0], drafter, DraftShape(3))  # no draft leaves a trace either
        assert_same(propose(sessions[0], drafter, shape), trees[0])


def test_other_prefixes_give_other_proposals(target: Target, drafters: dict[str, Drafter]) -> None:
    """Guards the tests above: they would hold for a drafter that ignores the text."""
    for name in NAMES:
        seen = set()
        for seed in range(4):
            prompt = torch.randint(4, 60, (9,), generator=torch.Generator().manual_seed(seed))
            prompt = torch.cat([prompt, prompt])
            rule = make_rule(None, 0.0, 0, target.vocab_size)
            session = Session(target, prompt, rule, 40, drafters)
            session.prefill()
            for _ in range(8):
                play_round(session, parse_arm("plain"))
            seen.add(tuple(propose(session, drafters[name], 4).tokens.tolist()))
        assert len(seen) > 1
