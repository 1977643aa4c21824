"""Replayed rounds are the rounds of live decoding: tokens, times and observations."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.envs.router.live import RouterEnv
from draftgym.envs.router.replay import RouterReplayEnv
from draftgym.policies.routers.rules import FixedPolicy
from draftgym.rollouts.replay.play import Course, play_policy
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.traces.trace import TraceSet
from tests.routers_alike import play_alike
from tests.tiny import ARMS, PROMPTS, numbered_target
from tests.traces import tiny_traces

JOINT_ARMS = ("ngram:5>eagle3:3", "ngram:5@3>small:3~0.04>dflash:2", "eagle3:4x8+ngram:5+dflash:2")
MORE_ARMS = (*ARMS, "eagle3:1", "eagle3:4x8", "dflash:2", "small:3", *JOINT_ARMS)
LIMIT = 40


@pytest.fixture(scope="module")
def traces_at(target: Target, drafters: dict[str, Drafter]) -> dict[float, TraceSet]:
    """Traces by temperature."""
    return {
        temperature: tiny_traces(target, drafters, temperature, MORE_ARMS, max_new_tokens=LIMIT)
        for temperature in (0.0, 1.0)
    }


@pytest.fixture(scope="module")
def traces(traces_at: dict[float, TraceSet]) -> TraceSet:
    return traces_at[0.0]


def live_env(target: Target, drafters: dict[str, Drafter], traces: TraceSet) -> RouterEnv:
    return RouterEnv(
        target=numbered_target(target),
        drafters=drafters,
        arms=MORE_ARMS,
        prompts=PROMPTS,
        max_new_tokens=LIMIT,
        temperature=traces.origin.temperature,
        latency=traces.origin.cost_model,
    )


def test_traces_without_a_round_are_refused_with_a_remedy(traces: TraceSet) -> None:
    silent = replace(traces, texts=[])
    for open_traces in (Replay, Course):
        with pytest.raises(DraftgymError, match="no text") as caught:
            open_traces(silent, [parse_arm("plain")])
        assert "--max-new-tokens" in caught.value.remedy


def test_both_environments_refuse_an_unknown_prompt_and_arm_alike(
    target: Target, drafters: dict[str, Drafter], traces: TraceSet
) -> None:
    for env in (live_env(target, drafters, traces), RouterReplayEnv(traces, MORE_ARMS)):
        with pytest.raises(DraftgymError, match="'missing'"):
            env.reset(options={"prompt": "missing"})
        env.reset(seed=0)
        with pytest.raises(DraftgymError, match=f"not one of the {len(MORE_ARMS)} arms"):
            env.step(len(MORE_ARMS))


def test_both_environments_deal_the_prompts_of_a_seed_in_one_order(
    target: Target, drafters: dict[str, Drafter], traces: TraceSet
) -> None:
    orders = []
    for env in (live_env(target, drafters, traces), RouterReplayEnv(traces, MORE_ARMS)):
        names = [env.reset(seed=5)[1]["question_id"]]
        orders.append(names + [env.reset()[1]["question_id"] for _ in PROMPTS[1:]])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(prompt.question_id for prompt in PROMPTS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_live_and_replay_agree_at_every_round(
    target: Target,
    drafters: dict[str, Drafter],
    traces_at: dict[float, TraceSet],
    temperature: float,
    seed: int,
) -> None:
    traces = traces_at[temperature]
    live, replay = live_env(target, drafters, traces), RouterReplayEnv(traces, MORE_ARMS)
    assert len(play_alike(live, replay, PROMPTS[seed], len(MORE_ARMS), seed)) > 6


def test_replay_passes_both_checkers(traces: TraceSet) -> None:
    env = RouterReplayEnv(traces, MORE_ARMS)
    check_env(env, skip_render_check=True)
    check_env_for_sb3(env)


def test_replaying_copies_no_hidden_state(traces: TraceSet) -> None:
    """They are most of a trace; replaying holds none but those that it has just shown."""
    long = [
        replace(text, hidden=np.zeros((len(text.tokens), 50_000), np.float32))
        for text in traces.texts
    ]
    wide = replace(traces, texts=long)
    held = sum(text.hidden.nbytes for text in long)
    arms = [parse_arm(arm) for arm in MORE_ARMS]
    tracemalloc.start()
    try:
        replay = Replay(wide, arms, 2)
        shown = replay.observe(np.array([1]))["hidden"]
        play_policy(wide, FixedPolicy(arms[0]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert shown.shape == (1, 50_000)
    assert peak < held / 4
