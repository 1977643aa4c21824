"""Rules play servers to the end, and no rule writes more per second than the greedy oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.arrivals import AtOnce, Poisson
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.env import make_load
from draftgym.envs.serving.oracle import play_oracle
from draftgym.envs.serving.play import RulePlayer, play
from draftgym.envs.serving.tune import best_lengths
from draftgym.policies.serving.adaptive import AdaptiveLength
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.goodput import GoodputLength
from draftgym.policies.serving.planned import PlannedPlayer
from draftgym.policies.serving.rule import FixedRule, Ladder
from tests.handmade.served import ARMS, LENGTHS, served_traces

TRACES = served_traces()
LADDER = Ladder.of("small", LENGTHS)


def servers(count: int = 2, places: int = 4, **changes: object) -> Load:
    settings = ServerSettings(places, 12, AtOnce(), look_up=False, **changes)  # type: ignore[arg-type]
    return make_load(TRACES, ARMS, settings, count)


def test_rules_write_every_text_and_differ_in_time_alone() -> None:
    load = servers()
    rules = [
        *(FixedRule(arm) for arm in LADDER.arms.values()),
        LengthBySize(LADDER, {1: 7, 4: 3}),
        AdaptiveLength(LADDER, load.texts.drafters),
        GoodputLength(LADDER, load.costs),
    ]
    served = [play(load, RulePlayer(rule, load), [3, 4]) for rule in rules]
    for one in served:
        np.testing.assert_array_equal(one.tokens, served[0].tokens)
        assert np.isfinite(one.token_seconds).all()
    assert len({one.goodput for one in served}) > 4


def test_what_rules_learn_is_of_their_own_server() -> None:
    load = servers(count=1)
    rule = AdaptiveLength(LADDER, load.texts.drafters)
    alone = [play(load, RulePlayer(rule, load), [seed]).goodput for seed in (3, 4)]
    both = servers(count=2)
    together = play(both, RulePlayer(rule, both), [3, 4])
    np.testing.assert_allclose(together.tokens / together.seconds, alone)


def test_an_arm_that_servers_lack_is_refused() -> None:
    with pytest.raises(DraftgymError, match="no arm 'small:2'"):
        RulePlayer(FixedRule(Ladder.of("small", [2]).arms[2]), servers())


def test_the_oracles_round_is_the_best_of_all_rounds() -> None:
    load = servers(count=1, places=3)
    load.reset([np.random.default_rng(1)])
    price, checked = 200.0, 0
    rng = np.random.default_rng(0)
    while not load.done.all() and checked < 12:
        if load.deciding.all():
            checked += 1
            earned = []
            for arms in itertools.product(range(len(ARMS)), repeat=3):
                committed, seconds = load.preview(np.array([arms]))
                earned.append(committed.sum() - price * seconds[0])
            committed, seconds = load.preview(PlannedPlayer(None, load, price).choose(load))
            assert committed.sum() - price * seconds[0] == pytest.approx(max(earned), abs=0.02)
        load.step(rng.integers(len(ARMS), size=(1, 3)))
    assert checked == 12


@pytest.mark.slow
def test_no_arm_writes_more_per_second_than_the_oracle() -> None:
    texts, settings = served_traces(24, 60), ServerSettings(4, 60, AtOnce(), look_up=False)
    load = make_load(texts, ARMS, settings, 4)
    seeds = range(4)
    fixed = max(
        play(load, RulePlayer(FixedRule(arm), load), seeds).goodput for arm in load.texts.arms
    )
    assert play_oracle(load, fixed, seeds).goodput > 1.05 * fixed
    running = play(load, PlannedPlayer(None, load), seeds)
    assert running.goodput > 1.02 * fixed, "the running price is nearly that"


def test_tuned_lengths_are_the_best_of_each_size() -> None:
    load = servers()
    settings = load.settings
    schedule = best_lengths(load.texts, settings, LADDER, (1, 4), 3, (0, 1))
    assert list(schedule) == [1, 4]
    full = servers(places=4)
    rates = {
        length: play(full, RulePlayer(FixedRule(arm), full), [0, 1]).goodput
        for length, arm in LADDER.arms.items()
    }
    assert schedule[4] == max(rates, key=lambda length: rates[length])


def test_waiting_grows_with_the_load() -> None:
    waited = []
    for rate in (1.0, 2000.0):
        load = make_load(TRACES, ARMS, ServerSettings(2, 30, Poisson(rate), look_up=False))
        served = play(load, RulePlayer(FixedRule(LADDER.arms[3]), load), [0])
        waited.append(np.median(served.first_token_seconds))
        assert (served.first_token_seconds > 0).all()
    assert waited[1] > 3 * waited[0]
