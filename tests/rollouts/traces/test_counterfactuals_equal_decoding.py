"""Traces say what decoding with an arm does, at every position and at its price."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

import tests.tiny
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter, DraftShape, Place, PrefixView
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round
from draftgym.decoding.session import Session
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.positions.recorded import matched
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.policies.routers.rules import FixedPolicy
from draftgym.rollouts.decode.batched import Request
from draftgym.rollouts.replay.oracle import walk, walk_optimal, walk_single
from draftgym.rollouts.replay.pricing import PLAIN_ARM, price_traces
from draftgym.rollouts.traces.counterfactual import trace_texts
from draftgym.rollouts.traces.joint import made_by
from draftgym.rollouts.traces.trace import TraceSet
from tests.traces import NOISE_SEED, tiny_traces

CHOSEN = (
    *("eagle3:3", "eagle3:4x10", "dflash:4x8", "small:3", "ngram:5", "suffix:8", "suffix:4x10"),
    "dflash:4",
)
SINGLE = [parse_arm(text) for text in CHOSEN]
JOINT = [
    parse_arm(text)
    for text in (
        "ngram:5>eagle3:4x10",
        "ngram:5@3>small:3>eagle3:3",
        "ngram:5@4",
        "suffix:8@3>eagle3:3",
        "suffix:4x10@2~0.3+eagle3:3",
        "eagle3:4x10~0.02",
        "small:3~0.03>dflash:4~0.02",
        "dflash:4x8~0.05>eagle3:3~0.01",
        "eagle3:3+ngram:5",
        "eagle3:4x10~0.03+ngram:5@3+dflash:4x8",
    )
]
ARMS = [*SINGLE, *JOINT]
PROMPTS = [torch.tensor([5, 9, 5, 9, 5, 9, 7]), torch.tensor([8, 30, 12])]
LIMIT = 22
CHAINS = [DraftShape(1), DraftShape(4)]
TREES = [DraftShape(1, 4), DraftShape(3, 6), DraftShape(4, 24)]


@pytest.fixture(scope="module")
def drafters(drafters: dict[str, Drafter]) -> dict[str, Drafter]:
    """Suffix decoding, too; one that drafts four tokens behind a single one that matches."""
    return {**drafters, "suffix": SuffixDrafter(factor=4.0)}


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_read_off_a_trace_are_those_of_decoding(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    requests = [Request(f"q{i}", "", temperature, i, prompt) for i, prompt in enumerate(PROMPTS)]
    traces = trace_texts(target, drafters, SINGLE, requests, LIMIT)
    for seed, (prompt, trace) in enumerate(zip(PROMPTS, traces, strict=True)):
        for arm in ARMS:
            decoder = SpeculativeDecoder(target, drafters, FixedPolicy(arm))
            text = decoder.generate(prompt, LIMIT, temperature, seed)
            assert text.tokens == trace.tokens.tolist()
            made, position = made_by(trace, arm), 0
            for record in (item.record for item in text.rounds):
                assert made.committed[position] == len(record.committed)
                assert made.drafted[position] == len(record.drafted)
                assert made.depth[position] == record.depth
                position += len(record.committed)


def decode_cycling(
    target: Target, drafters: dict[str, Drafter], traces: TraceSet, arms: list[Arm], prompt: int
) -> float:
    """Predicted seconds of the rounds that live decoding plays with arms in turn."""
    origin = traces.origin
    rule = make_rule(None, origin.temperature, NOISE_SEED, target.vocab_size)
    tokens = torch.randint(4, 60, (6,), generator=torch.Generator().manual_seed(prompt))
    session = Session(target, tokens, rule, origin.max_new_tokens, drafters)
    session.prefill()
    turns, seconds = cycle(arms), 0.0
    while not session.finished:
        made = play_round(session, next(turns))
        seconds += origin.cost_model.round_seconds(made.asked, len(made.drafted), made.context)
    return seconds


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_walks_cost_what_the_same_rounds_cost_when_decoded(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    names, prompts = [*map(str, ARMS)], tests.tiny.PROMPTS[:2]
    traces = tiny_traces(target, drafters, temperature, names, prompts, max_new_tokens=30)
    arms = [*ARMS, PLAIN_ARM]
    for prompt, text in enumerate(price_traces(traces, arms)):
        for turns in ([arms[0], PLAIN_ARM, arms[4], arms[2]], [*reversed(arms)], [arms[1]]):
            chosen = cycle(arms.index(arm) for arm in turns)
            found = walk(text, lambda position, costs, chosen=chosen: next(chosen))
            live = decode_cycling(target, drafters, traces, turns, prompt)
            assert found.seconds == pytest.approx(live, rel=1e-9)
            assert walk_optimal(text).seconds <= found.seconds * (1 + 1e-12)
        assert walk_single(text, arms[1]).seconds == pytest.approx(live, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "trees", "temperature"),
    [
        *(("eagle3", True, 0.0), ("eagle3", True, 0.8), ("dflash", True, 0.8)),
        *(("small", True, 0.8), ("suffix", True, 0.0)),
        *(("small", False, 0.0), ("ngram", False, 0.8)),
    ],
)
def test_drafting_at_many_positions_together_is_drafting_one_at_a_time(
    target: Target, drafters: dict[str, Drafter], name: str, trees: bool, temperature: float
) -> None:
    drafter = drafters[name]
    rule = make_rule(None, temperature, 2, target.vocab_size)
    session = Session(target, PROMPTS[0], rule, 70, drafters)
    session.prefill()
    while not session.finished:
        play_round(session, PLAIN_ARM)
    length = len(session.tokens)  # more places than one batch takes, the last of them cut or full
    places = [Place(n, length - n - 1) for n in range(len(PROMPTS[0]) + 1, length)]
    shapes = CHAINS + (TREES if trees else [])
    drawn = drafter.propose_at_each(session, places, shapes)
    state, longest = drafter.new_state(session.capacity), 0
    for place, together in zip(places, drawn, strict=True):
        view = PrefixView(session, place.length)
        drafter.catch_up(state, view)
        for shape, proposal in zip(shapes, together, strict=True):
            alone = Proposal.empty()
            if place.room > 0:
                alone = drafter.propose(state, view, shape.cut(place.room))
            assert proposal.tokens.tolist() == alone.tokens.tolist()
            assert proposal.parents.tolist() == alone.parents.tolist()
            torch.testing.assert_close(proposal.logprobs, alone.logprobs, rtol=1e-5, atol=1e-5)
            longest = max(longest, alone.depth)
    assert longest == 4, "or nothing was compared"


def test_acceptance_of_a_tree_follows_the_text() -> None:
    #   anchor -> 7 -> 8 -> 9, and beside 8 a 5 -> 6
    tree = Proposal(torch.tensor([7, 8, 5, 9, 6]), torch.tensor([-1, 0, 0, 1, 2]), torch.zeros(5))
    assert matched(tree, [7, 5, 6, 4]) == 4
    assert matched(tree, [7, 5, 4, 4]) == 3
    assert matched(tree, [3, 7, 8]) == 1
    assert matched(tree, [7, 8, 9]) == 3  # the text ends there: no token of the target's own
    assert matched(Proposal.empty(), [7]) == 1
