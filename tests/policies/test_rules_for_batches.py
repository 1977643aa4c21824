"""Rules for a server's batch choose what their engines' rules say."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.published import published_costs
from draftgym.decoding.costs.server_costs import LinearServerCosts
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.adaptive import SGLANG, AdaptiveLength, AdaptiveSize
from draftgym.policies.serving.by_size import TENSORRT_EXAMPLE, LengthBySize
from draftgym.policies.serving.goodput import GoodputLength
from draftgym.policies.serving.rule import Batch, FixedRule, Ladder, Outcome, ServingRule

LADDER = Ladder.of("eagle3", range(8))
DRAFTERS = ("eagle3", "ngram")


def batch(*sizes: int, copies: int = 1) -> Batch:
    """Servers with so many requests that are being written."""
    deciding = np.arange(max(*sizes, 1))[None] < np.array(sizes)[:, None]
    return Batch(deciding, copies * 400 * deciding.sum(-1), copies)


def lengths(rule: ServingRule, *sizes: int, copies: int = 1) -> list[int]:
    """What a rule drafts on servers with so many requests."""
    chosen = rule.choose(batch(*sizes, copies=copies))
    assert (chosen == chosen[:, :1]).all()
    return [rule.arms[arm].length for arm in chosen[:, 0]]


def told(of: Batch, drafted: int, accepted: int, column: int = 0) -> Outcome:
    """A round in which everybody drafted and got so many."""
    verified = np.zeros((*of.deciding.shape, 2), bool)
    verified[..., column] = of.deciding & (drafted > 0)
    return Outcome(drafted * of.deciding, accepted * of.deciding, verified)


def test_a_ladder_has_an_arm_for_every_length_also_behind_a_lookup() -> None:
    assert [str(arm) for arm in Ladder.of("eagle3", [3, 1]).arms.values()] == [
        "plain",
        "eagle3:1",
        "eagle3:3",
    ]
    behind = Ladder.of("eagle3", [2], parse_arm("ngram:8@3"))
    assert [str(arm) for arm in behind.arms.values()] == ["ngram:8@3", "ngram:8@3>eagle3:2"]
    assert Ladder.of("eagle3", [3, 1]).index(np.array([0, 1, 2, 3, 9])).tolist() == [0, 1, 1, 2, 2]


def test_schedules_go_by_upper_bounds_and_end_in_plain() -> None:
    rule = LengthBySize(LADDER, TENSORRT_EXAMPLE)
    assert lengths(rule, 1, 4, 5, 8, 9, 32, 33) == [4, 4, 2, 2, 1, 1, 0]
    assert lengths(rule, 1, copies=8) == [2], "identical requests count each"


def test_vllms_table_says_the_same_as_a_schedule() -> None:
    table = [[1, 4, 5], [5, 16, 2], [17, 64, 0]]
    rule = LengthBySize.from_vllm(LADDER, table)
    assert rule.schedule == {4: 5, 16: 2, 64: 0} and rule.to_vllm() == table
    assert lengths(rule, 4, 5, 16, 17) == [5, 2, 2, 0]


def test_mistaken_schedules_are_refused_with_a_remedy() -> None:
    for make, word in [
        (lambda: LengthBySize(LADDER, {}), "schedule"),
        (lambda: LengthBySize(LADDER, {0: 2}), "schedule"),
        (lambda: LengthBySize(LADDER, {4: 9}), "length of 9"),
        (lambda: LengthBySize.from_vllm(LADDER, [[2, 4, 5]]), "entry"),
        (lambda: AdaptiveLength(LADDER, DRAFTERS, {}), "no batch size"),
        (lambda: AdaptiveLength(LADDER, DRAFTERS, {1: AdaptiveSize((9,))}), "length of 9"),
    ]:
        with pytest.raises(DraftgymError, match=word) as refused:
            make()
        assert refused.value.remedy


def play(rule: ServingRule, rounds: int, accepted: int, size: int = 1, column: int = 0) -> int:
    """Plays rounds in which each draft gets so many tokens, or all it has; returns the length."""
    for _ in range(rounds):
        of = batch(size)
        arms = rule.choose(of)
        drafted = rule.arms[arms[0, 0]].length
        rule.learn(of, arms, told(of, drafted, min(accepted, drafted), column))
    return lengths(rule, size)[0]


def test_adaptive_lengths_follow_what_is_accepted() -> None:
    rule = AdaptiveLength(LADDER, DRAFTERS)
    assert lengths(rule, 1) == [5], "the candidate in the middle"
    assert play(rule, 14, 7) == 5, "ten rounds of warming up, then the fifth decides"
    assert play(rule, 1, 7) == 7, "a is above 4.5 by then"
    assert play(rule, 60, 0) == 1, "a falls to 0, below 1 - 0.5 - 0.25"
    assert play(rule, 60, 9) == 7


def test_adaptive_lengths_try_drafting_again_after_none() -> None:
    rule = AdaptiveLength(LADDER, DRAFTERS, {1: SGLANG[8]})
    met = set()
    for _ in range(60):
        met.add(play(rule, 1, 0))
    assert met == {0, 1}
    assert AdaptiveLength(LADDER, DRAFTERS).arms
    full = AdaptiveLength(LADDER, DRAFTERS)
    full.begin(2)
    assert lengths(full, 64, 80) == [0, 0] and lengths(full, 7, 8) == [5, 1]


def test_adaptive_lengths_read_only_their_own_drafter() -> None:
    rule = AdaptiveLength(LADDER, DRAFTERS)
    assert play(rule, 60, 0, column=1) == play(AdaptiveLength(LADDER, DRAFTERS), 15, 4) == 5


def test_goodput_drafts_less_the_fuller_the_server_and_the_worse_the_drafts() -> None:
    costs = LinearServerCosts(published_costs("llama3.1-8b-h100"), DRAFTERS)
    rule = GoodputLength(LADDER, costs)
    found = lengths(rule, 1) + lengths(rule, 32) + lengths(rule, 512)
    assert found == sorted(found, reverse=True) and found[0] > found[2]
    good, bad = (play(GoodputLength(LADDER, costs), 200, tokens) for tokens in (7, 0))
    assert good == 7 and bad == 0


def test_goodput_is_the_best_ratio_by_brute_force() -> None:
    costs = LinearServerCosts(published_costs("llama3.1-8b-h100"), DRAFTERS)
    rule = GoodputLength(LADDER, costs)
    for size in (1, 8, 64):
        for accepted in (1, 3):
            play(rule, 20, accepted, size)
            a, of = float(rule.acceptance[0]), batch(size)
            ratios = []
            for length in LADDER.arms:
                tokens = size * sum(a**i for i in range(length + 1))
                seconds = costs.pass_seconds(size, size * (length + 1), of.cached)
                if length:
                    seconds = seconds + costs.chain_seconds("eagle3", size, length, of.cached)
                ratios.append(tokens / float(np.sum(seconds)))
            assert lengths(rule, size) == [int(np.argmax(ratios))]


def test_fixed_rules_play_their_arm() -> None:
    rule = FixedRule(parse_arm("ngram:8@3>eagle3:2"))
    assert rule.name == "ngram:8@3>eagle3:2" and not rule.choose(batch(3, 1)).any()
