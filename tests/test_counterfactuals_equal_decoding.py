"""Traces say what decoding with an arm does, and the oracle is the best of routers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from rollouts.headroom import PLAIN_ARM, duel, one_each, prize, walk_best, walk_single

from decoding.arms import Arm, parse_arm
from decoding.decoder import SpeculativeDecoder
from decoding.drafting import Drafter
from decoding.proposal import Proposal
from decoding.rules import make_rule
from decoding.target import Target
from policies.fixed import FixedPolicy
from rollouts.counterfactual import ArmTrace, TextTrace, matched, trace_texts

ARMS = [parse_arm(text) for text in ("eagle3:3", "eagle3:4x10", "dflash:4x8", "small:3", "ngram:5")]
PROMPTS = [torch.tensor([5, 9, 5, 9, 5, 9, 7]), torch.tensor([8, 30, 12])]
LIMIT = 30


def traces(target: Target, drafters: dict[str, Drafter], temperature: float) -> list[TextTrace]:
    rule = make_rule(None, temperature, 3, target.vocab_size)
    return list(trace_texts(target, drafters, ARMS, PROMPTS, rule, LIMIT))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_read_off_a_trace_are_those_of_decoding(
    target: Target, drafters: dict[str, Drafter], temperature: float
) -> None:
    for prompt, trace in zip(PROMPTS, traces(target, drafters, temperature), strict=True):
        for arm in ARMS:
            decoder = SpeculativeDecoder(target, drafters, FixedPolicy(arm))
            text = decoder.generate(prompt, LIMIT, temperature, seed=3)
            assert text.tokens == trace.tokens
            made, position = trace.arms[str(arm)], 0
            for record in (item.record for item in text.rounds):
                assert made.committed[position] == len(record.committed)
                assert made.drafted[position] == len(record.drafted)
                assert made.depth[position] == record.depth
                position += len(record.committed)
            assert walk_single(trace, arm, one_each).rounds == len(text.rounds)


def test_acceptance_of_a_tree_follows_the_text() -> None:
    #   anchor -> 7 -> 8 -> 9, and beside 8 a 5 -> 6
    tree = Proposal(torch.tensor([7, 8, 5, 9, 6]), torch.tensor([-1, 0, 0, 1, 2]), torch.zeros(5))
    assert matched(tree, [7, 5, 6, 4]) == 4
    assert matched(tree, [7, 5, 4, 4]) == 3
    assert matched(tree, [3, 7, 8]) == 1
    assert matched(tree, [7, 8, 9]) == 3  # the text ends there: no token of the target's own
    assert matched(Proposal.empty(), [7]) == 1


def handmade(**committed: list[int]) -> TextTrace:
    """A text with given counterfactuals."""
    length = len(next(iter(committed.values())))
    arms = {f"{name}:9": ArmTrace(c, [9] * length, [9] * length) for name, c in committed.items()}
    return TextTrace(4, list(range(length + 1)), arms)


A, B = Arm("a", 9), Arm("b", 9)


def test_the_oracle_is_the_best_of_all_sequences_of_choices() -> None:
    trace = handmade(a=[3, 1, 1, 2, 1, 1, 1], b=[1, 2, 1, 4, 1, 2, 1])
    price = {A: 1.0, B: 1.3, PLAIN_ARM: 0.8}

    def cost(trace: TextTrace, arm: Arm, position: int) -> float:
        return price[arm] + 0.01 * position

    def spent(choices: tuple[Arm, ...]) -> float:
        position, paid = 0, 0.0
        for arm in choices:
            if position < 7:
                paid += cost(trace, arm, position)
                position += trace.arms[str(arm)].committed[position] if arm.drafts else 1
        return paid

    arms = [A, B, PLAIN_ARM]
    brute = min(spent(choices) for choices in product(arms, repeat=7))
    assert walk_best(trace, arms, cost).cost == pytest.approx(brute)
    found = prize([trace], arms, cost)
    single = {arm: walk_single(trace, arm, cost).cost for arm in arms}
    assert found.best == min(single, key=lambda arm: single[arm])
    assert found.gain == pytest.approx(min(single.values()) / brute - 1)


def test_no_router_beats_the_oracle_on_real_traces(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    for trace in traces(target, drafters, 0.0):
        best = walk_best(trace, ARMS, one_each)
        assert best.tokens == len(trace.tokens) - 1
        assert best.rounds <= min(walk_single(trace, arm, one_each).rounds for arm in ARMS)


def test_duels_count_by_hand() -> None:
    trace = handmade(a=[3, 1, 1, 2], b=[1, 2, 1, 2])
    result = duel([trace], A, B)
    assert (result.first, result.equal, result.second) == (0.25, 0.5, 0.25)
    assert duel([trace], A, B, range(0, 2)).equal == 0.0
