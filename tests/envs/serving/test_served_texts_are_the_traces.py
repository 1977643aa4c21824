"""Whatever arms are played, every request gets its text once; alone, it is the router's replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.costs.published import PUBLISHED, published_cost_model
from draftgym.decoding.costs.server_costs import (
    LinearServerCosts,
    MeasuredServerCosts,
    ServerCosts,
)
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.arrivals import AtOnce, Bursts, Poisson
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.load.texts import ServedTexts
from draftgym.envs.serving.env import ServingEnv
from draftgym.policies.serving.observation import LOOKED, observe, request_features
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.users import user_traces
from tests.tiny import ARMS
from tests.traces import tiny_traces

H100 = "llama3.1-8b-h100"
TRACES = user_traces()
TEXTS = {text.question_id: text.tokens.tolist() for text in TRACES.texts}
CHOICES = ["plain", "small:6", "ngram:8", "ngram:8>small:6"]
TINY = (*ARMS, "eagle3:1", "eagle3:4x8", "small:3", "ngram:4@2>eagle3:3", "eagle3:4x8+ngram:4")


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    places=st.integers(1, 5),
    rate=st.floats(1.0, 500.0),
    rows=st.integers(1, 5),
)
def test_every_request_gets_its_text_once(seed: int, places: int, rate: float, rows: int) -> None:
    settings = ServerSettings(
        places, 12, Poisson(rate), prompt_rows=rows, prompt_rows_alone=2 * rows
    )
    env = ServingEnv(TRACES, CHOICES, settings)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    written: list[list[int]] = [[] for _ in range(places)]
    served, done = [], False
    while not done:
        _, _, done, _, info = env.step(env.action_space.sample())
        for place, tokens in enumerate(info["tokens"]):
            written[place] += tokens
            assert len(tokens) == info["committed"][place]
            if info["finished"][place]:
                name = info["question_ids"][place]
                assert written[place] == TEXTS[name]
                served.append(name)
                written[place] = []
    assert len(served) == 12 and not any(written)
    assert set(served[:9]) <= set(TEXTS) and served.count(served[0]) <= 2


def test_actions_change_no_request() -> None:
    settings = ServerSettings(3, 20, Bursts(200.0, 10.0, 0.05, 0.05))
    asked = []
    for arm in (0, 1):
        env = ServingEnv(TRACES, CHOICES, settings)
        env.reset(seed=5)
        done = False
        while not done:
            done = env.step(np.full(3, arm))[2]
        requests = env.load.requests
        asked.append((requests.arrival, requests.text, requests.end))
    np.testing.assert_array_equal(asked[0][0], asked[1][0])
    np.testing.assert_array_equal(asked[0][1], asked[1][1])
    assert not np.array_equal(asked[0][2], asked[1][2])


def play_beside_the_router(
    traces: TraceSet, arms: list[str], costs: ServerCosts, model: CostModel
) -> int:
    """One request at a time, and the router's replay of the same texts, with the same arms."""
    chosen = [parse_arm(arm) for arm in arms]
    texts = ServedTexts(traces, chosen, costs.model)
    settings = ServerSettings(1, len(texts.texts), AtOnce(), look_up=False)
    load, replay = Load(texts, settings, costs), Replay(traces, chosen, 1, model)
    rng = np.random.default_rng(1)
    load.reset([np.random.default_rng(0)])
    signals = (
        len(request_features(texts.arms, texts.lookups)) - replay.observe()["signals"].shape[1]
    )
    rounds = 0
    while not load.done.all():
        if not load.deciding[0, 0]:
            replay.start(np.zeros(1, np.int64), load.text[0])
            load.step(np.zeros((1, 1), np.int64))
            continue
        mine, theirs = observe(load)["requests"], replay.observe()["signals"]
        np.testing.assert_allclose(mine[0, :, signals:], theirs, rtol=1e-6)
        arm = rng.integers(len(arms), size=1)
        served, played = load.step(arm[None]), replay.step(arm)
        assert served.committed[0, 0] == played.committed[0]
        np.testing.assert_allclose(served.seconds, played.seconds, rtol=1e-9)
        assert served.finished[0, 0] == played.done[0]
        rounds += 1
    return rounds


def without_cached(drafters: tuple[str, ...]) -> LinearServerCosts:
    """The published fit, without what drafts cost by cached positions: cost models leave it out."""
    return LinearServerCosts(replace(PUBLISHED[H100], draft_cached=0.0), drafters)


def test_one_request_at_a_time_is_the_routers_replay() -> None:
    costs = without_cached(("small", "ngram"))
    model = published_cost_model(H100, costs.drafters)
    assert play_beside_the_router(TRACES, CHOICES, costs, model) > 40


def test_trees_cascades_and_grafts_are_the_routers_too(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    traces = tiny_traces(target, drafters, arms=(*TINY[:-2], "ngram:4"), max_new_tokens=24)
    arms = list(TINY)
    order = tuple(drafter_names([parse_arm(arm) for arm in arms]))
    linear = without_cached(order)
    assert play_beside_the_router(traces, arms, linear, published_cost_model(H100, order)) > 40
    model = traces.origin.cost_model
    costs = MeasuredServerCosts(as_batches(model), model, order)
    assert play_beside_the_router(traces, arms, costs, model) > 40


def as_batches(model: CostModel) -> BatchCost:
    """The passes of a cost model, as those of batches of one text."""
    contexts = tuple(sorted(model.target_pass))
    rows = tuple(int(at) for at in model.target_pass[contexts[0]].at)
    grid = tuple((tuple(model.target_pass[at](each) for each in rows),) for at in contexts)
    return BatchCost({}, contexts, (1,), rows, grid)


def test_looking_up_is_paid_for_and_shows_what_is_found(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    traces = tiny_traces(target, drafters, arms=("ngram:4", "eagle3:3"), max_new_tokens=24)
    seen = {}
    for look_up in (False, True):
        settings = ServerSettings(2, 4, AtOnce(), look_up=look_up)
        env = ServingEnv(traces, ["plain", "ngram:4"], settings)
        env.reset(seed=0)
        env.step(np.zeros(2, np.int64))
        observation = env.step(np.zeros(2, np.int64))
        seen[look_up] = observation[0]["requests"], observation[4]["seconds"]
    shown = dict(
        zip(request_features(env.load.arms, env.load.lookups), seen[True][0].T, strict=True)
    )
    looked = {f"{what}_ngram" for what in LOOKED}
    assert looked <= shown.keys()
    assert seen[True][0].shape[1] == seen[False][0].shape[1] + len(looked)
    assert seen[False][1]["draft"] == 0 < seen[True][1]["draft"]


@pytest.mark.parametrize("objective", ["goodput", "latency"])
def test_the_same_seed_gives_the_same_episode(objective: str) -> None:
    runs = []
    for _ in range(2):
        env = ServingEnv(TRACES, CHOICES, ServerSettings(3, 8, Poisson(100.0)), objective)
        env.action_space.seed(3)
        seen = [env.reset(seed=7)[0]["requests"]]
        for _ in range(12):
            observation, reward, *_ = env.step(env.action_space.sample())
            seen += [observation["requests"], observation["server"], np.array(reward)]
        runs.append(seen)
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other)
