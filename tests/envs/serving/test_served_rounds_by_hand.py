"""Rounds of a server take what can be reckoned by hand, and requests wait as long as they do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.published import LinearCosts
from draftgym.decoding.costs.server_costs import LinearServerCosts
from draftgym.envs.load.arrivals import AtOnce, Recorded
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import LatencyObjective, ServerSettings
from draftgym.envs.load.texts import ServedTexts
from draftgym.envs.serving.reward import ServingReward, within
from tests.handmade.traces import handmade_traces

COSTS = LinearCosts(
    source="by hand",
    step=1.0,
    pass_start=10.0,
    pass_row=0.1,
    pass_cached=0.001,
    draft_start=2.0,
    draft_row=0.01,
    draft_cached=0.0001,
    lookup=0.0,
)
PLAIN, EAGLE = 0, 1
SLOW = LatencyObjective(first_token=20.0, per_token=12.0)


def two_requests(**changes: object) -> Load:
    """One text of 3 tokens and 6 new ones, asked for at 0 and at 5 seconds.

    EAGLE-3 gets 3 tokens where the text is long enough. Prompts are read 2 rows at a time beside
    others.
    """
    traces = handmade_traces({"eagle3:4": lambda signals, hidden: np.full(len(signals), 3)}, 1, 6)
    texts = ServedTexts(traces, [parse_arm("plain"), parse_arm("eagle3:4")])
    usual = ServerSettings(2, 2, Recorded((0.0, 5.0)), prompt_rows=2, latency=SLOW)
    settings = replace(usual, **changes)
    load = Load(texts, settings, LinearServerCosts(COSTS, texts.drafters))
    load.reset([np.random.default_rng(0)])
    return load


def test_two_requests_and_four_rounds_by_hand() -> None:
    load = two_requests()
    assert load.active.tolist() == [[True, False]] and not load.deciding.any()

    first = load.step(np.array([[EAGLE, EAGLE]]))  # nobody is asked: a prompt of 3 rows is read
    assert first.read.tolist() == [[3, 0]] and first.committed.tolist() == [[1, 0]]
    assert first.seconds[0] == pytest.approx(1 + 10 + 3 * 0.1)
    assert load.active.all() and load.deciding.tolist() == [[True, False]]

    second = load.step(np.array([[EAGLE, EAGLE]]))
    assert second.read.tolist() == [[0, 2]] and second.committed.tolist() == [[3, 0]]
    assert second.pass_seconds[0] == pytest.approx(11 + (4 + 1 + 2) * 0.1 + 3 * 0.001)
    # A start; 4 tokens, and the 2 of the prompt that the drafter has not encoded; 3 cached.
    assert second.draft_seconds[0] == pytest.approx(2 + (4 + 2) * 0.01 + 3 * 0.0001)

    third = load.step(np.array([[PLAIN, PLAIN]]))
    assert third.read.tolist() == [[0, 1]] and third.committed.tolist() == [[1, 1]]
    assert third.seconds[0] == pytest.approx(11 + 2 * 0.1 + (6 + 2) * 0.001)
    assert third.began.tolist() == [[False, True]] and load.deciding.all()

    fourth = load.step(np.array([[EAGLE, EAGLE]]))  # one token is left: nothing can be drafted
    assert fourth.drafted.tolist() == [[0, 4]] and fourth.committed.tolist() == [[1, 3]]
    assert fourth.pass_seconds[0] == pytest.approx(11 + (1 + 4 + 1) * 0.1 + (7 + 3) * 0.001)
    assert fourth.draft_seconds[0] == pytest.approx(2 + (4 + 2) * 0.01 + 3 * 0.0001)
    assert fourth.finished.tolist() == [[True, False]]

    rounds = [one.seconds[0] for one in (first, second, third, fourth)]
    assert load.clock[0] == pytest.approx(sum(rounds))
    waited = load.requests.first_token_seconds[0]
    assert waited.tolist() == pytest.approx([rounds[0], sum(rounds[:3]) - 5.0])
    assert load.requests.token_seconds[0, 0] == pytest.approx(sum(rounds[1:]) / 5)
    assert np.isinf(load.requests.token_seconds[0, 1])


def test_requests_within_their_objective_are_rewarded_when_they_end() -> None:
    load = two_requests()
    reward = ServingReward(load, "latency")
    earned = []
    while not load.done.all():
        earned.append(reward(load.step(np.ones((1, 2), np.int64)))[0])
    assert within(load.requests, SLOW)[0].tolist() == [True, False], "the second waits 26 seconds"
    assert sum(earned) == 0.5 and earned.count(0.5) == 1


def test_a_busy_second_costs_its_price() -> None:
    load = two_requests()
    reward = ServingReward(load, "goodput", 0.1)
    load.step(np.zeros((1, 2), np.int64))
    played = load.step(np.ones((1, 2), np.int64))
    assert reward(played)[0] == pytest.approx(3 - 0.1 * played.seconds[0])


def test_a_full_server_lets_in_who_came_first() -> None:
    load = two_requests(places=1, requests=3, arrivals=Recorded((0.0, 1.0, 2.0)))
    numbers = []
    while not load.done.all():
        numbers.append(int(load.number[0, 0]))
        load.step(np.zeros((1, 1), np.int64))
    assert numbers == [0] * 6 + [1] * 6 + [2] * 6
    assert (np.diff(load.requests.end[0]) > 0).all()


def test_an_idle_server_waits_for_the_next_request() -> None:
    load = two_requests(arrivals=Recorded((0.0, 500.0)))
    idle = [load.step(np.zeros((1, 2), np.int64)).idle[0] for _ in range(6)]
    assert idle[:5] == [0.0] * 5 and idle[5] == pytest.approx(500.0 - load.requests.end[0, 0])
    assert load.clock[0] == 500.0 and load.active[0].tolist() == [True, False]


def test_copies_are_equal_requests_side_by_side() -> None:
    side_by_side = two_requests(places=3, requests=3, arrivals=AtOnce(), prompt_rows_alone=99)
    copies = two_requests(places=1, requests=1, arrivals=AtOnce(), copies=3)
    for arm in (PLAIN, EAGLE, PLAIN, EAGLE):
        one, other = (load.step(np.full(load.shape, arm)) for load in (side_by_side, copies))
        assert one.seconds[0] == pytest.approx(other.seconds[0])
        assert one.committed.sum() == other.committed.sum()
    assert side_by_side.done.all() and copies.done.all()


def test_a_preview_is_the_round_that_follows() -> None:
    load = two_requests()
    while not load.done.all():
        arms = np.ones((1, 2), np.int64)
        committed, seconds = load.preview(arms)
        played = load.step(arms)
        np.testing.assert_array_equal(committed, played.committed)
        np.testing.assert_allclose(seconds, played.seconds)
