"""Routers that decide twice a round: live, replayed, deployed and trained alike, and lossless."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from draftgym.agents.common.settings import RouterDQN, RouterPPO
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import train_router
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.two_stage import LEVELS, two_stage_names, variants
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.envs.router.two_stage import (
    TwoStageReplayEnv,
    TwoStageReplayVectorEnv,
    TwoStageRouterEnv,
)
from draftgym.policies.routers.learned import (
    LearnedPolicy,
    RouterNetwork,
    load_learned_policy,
    save_learned_policy,
)
from draftgym.rollouts.decode.interleaved import write_together
from draftgym.rollouts.decode.options import DecodeSettings
from draftgym.rollouts.replay.oracle import walk_optimal
from draftgym.rollouts.replay.play import play_policy
from draftgym.rollouts.replay.pricing import price_traces
from draftgym.rollouts.replay.two_stage import with_free_lookup
from draftgym.rollouts.traces.trace import TraceSet
from tests.routers_alike import play_alike
from tests.tiny import PROMPTS, numbered_target
from tests.traces import NOISE_SEED, save_traces, tiny_traces

ARMS = (
    *("eagle3:3", "eagle3:4x8", "dflash:4x8", "small:3", "ngram:5", "suffix:8@2", "plain"),
    *("ngram:5>eagle3:4x8", "suffix:8~0.3>small:3~0.04", "eagle3:3+ngram:5"),
)
CHOICES = tuple(map(parse_arm, ARMS))
LIMIT = 40


@pytest.fixture(scope="module")
def drafters(drafters: dict[str, Drafter]) -> dict[str, Drafter]:
    return {**drafters, "suffix": SuffixDrafter(factor=4.0)}


@pytest.fixture(scope="module")
def traces_at(target: Target, drafters: dict[str, Drafter]) -> dict[float, TraceSet]:
    """Traces by temperature."""
    return {
        temperature: tiny_traces(target, drafters, temperature, ARMS, max_new_tokens=LIMIT)
        for temperature in (0.0, 1.0)
    }


def live_env(target: Target, drafters: dict[str, Drafter], traces: TraceSet) -> TwoStageRouterEnv:
    return TwoStageRouterEnv(
        target=numbered_target(target),
        drafters=drafters,
        arms=ARMS,
        prompts=PROMPTS,
        max_new_tokens=LIMIT,
        temperature=traces.origin.temperature,
        latency=traces.origin.cost_model,
    )


def router(target: Target, seed: int = 0) -> LearnedPolicy:
    """One that chooses everything now and then."""
    torch.manual_seed(seed)
    network = RouterNetwork(len(two_stage_names(CHOICES)), target.hidden_size, len(ARMS), width=16)
    with torch.no_grad():
        network.scores.weight.mul_(30)
    return LearnedPolicy(network, CHOICES, levels=LEVELS)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "temperature"), [(0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)])
def test_live_and_replay_agree_at_every_decision(
    target: Target,
    drafters: dict[str, Drafter],
    traces_at: dict[float, TraceSet],
    temperature: float,
    seed: int,
) -> None:
    traces = traces_at[temperature]
    live, replay = live_env(target, drafters, traces), TwoStageReplayEnv(traces, ARMS)
    second = two_stage_names(CHOICES).index("second")
    seen = play_alike(live, replay, PROMPTS[seed], len(ARMS), seed)
    decisions = [one["signals"][second] for one in seen[:-1]]
    assert min(decisions.count(0), decisions.count(1)) > 2


def test_environments_keep_the_contracts_of_gymnasium(
    target: Target, drafters: dict[str, Drafter], traces_at: dict[float, TraceSet]
) -> None:
    for env in (
        live_env(target, drafters, traces_at[0.0]),
        TwoStageReplayEnv(traces_at[0.0], ARMS),
    ):
        check_env(env, skip_render_check=True)
        check_env_for_sb3(env)
    made = gym.make("draftgym/RouterReplay-v1", traces=traces_at[0.0], arms=ARMS[:2])
    assert made.action_space.n == len(LEVELS)  # type: ignore[attr-defined]


def test_a_vector_of_episodes_plays_as_each_alone(traces_at: dict[float, TraceSet]) -> None:
    many = TwoStageReplayVectorEnv(5, traces_at[0.0], ARMS)
    singles = [TwoStageReplayEnv(traces_at[0.0], ARMS) for _ in range(5)]
    seeds, rng, rounds = [*range(5)], np.random.default_rng(1), 0
    seen, _ = many.reset(seed=seeds)
    alone = [env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)]
    for _ in range(60):
        for index, one in enumerate(alone):
            np.testing.assert_array_equal(seen["signals"][index], one["signals"])
        actions = rng.integers(len(ARMS), size=5)
        seen, rewards, done, _, told = many.step(actions)
        stepped = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        assert rewards.tolist() == pytest.approx([one[1] for one in stepped])
        assert done.tolist() == [one[2] for one in stepped]
        alone = [
            env.reset()[0] if one[2] else one[0] for env, one in zip(singles, stepped, strict=True)
        ]
        rounds += int((told.get("committed", 0) * ~done > 0).sum() + done.sum())
    assert many.played.sum() == rounds


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_decoder_plays_what_is_replayed_and_changes_no_text(
    target: Target,
    drafters: dict[str, Drafter],
    traces_at: dict[float, TraceSet],
    temperature: float,
) -> None:
    numbered, traces = numbered_target(target), traces_at[temperature]
    policy, asked = router(target), 0
    decoder = SpeculativeDecoder(numbered, drafters, policy)
    played = play_policy(traces, policy)
    for prompt, text in zip(PROMPTS, played, strict=True):
        ids = numbered.encode(prompt.text)
        made = decoder.generate(ids, LIMIT, temperature, NOISE_SEED)
        plain = SpeculativeDecoder(numbered, {}, PlainPolicy())
        assert made.tokens == plain.generate(ids, LIMIT, temperature, NOISE_SEED).tokens
        assert len(made.rounds) == text.rounds
        arms = [policy.arms.index(one.record.arm) for one in made.rounds]
        assert np.bincount(arms, minlength=len(ARMS)).tolist() == text.chosen.tolist()
        whole = [len(one.record.drafted) for one in made.rounds]
        asked += sum(whole)
    assert asked > 0


def test_texts_that_share_passes_are_plain_decodings(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    numbered = numbered_target(target)
    policies: dict[str, Any] = {
        "plain": PlainPolicy(),
        "twice": router(target),
        "2": router(target, 1),
    }
    ids = numbered.encode(PROMPTS[0].text)
    texts = write_together(numbered, drafters, policies, ids, DecodeSettings(max_new_tokens=30))
    assert texts["plain"] == texts["twice"] == texts["2"]


def test_nobody_beats_the_optimum_of_all_levels(
    target: Target, traces_at: dict[float, TraceSet]
) -> None:
    traces = traces_at[0.0]
    model = with_free_lookup(traces.origin.cost_model)
    arms = list(dict.fromkeys(one for arm in CHOICES for one in (arm, *variants(arm))))
    best = [walk_optimal(text).seconds for text in price_traces(traces, arms, model) if len(text)]
    for seed in range(3):
        seconds = [text.seconds for text in play_policy(traces, router(target, seed))]
        assert all(one >= other - 1e-12 for one, other in zip(seconds, best, strict=True))


def test_a_level_only_prunes() -> None:
    sure = parse_arm("suffix:8~0.3>eagle3:3x6~0.1")
    assert [str(arm) for arm in variants(sure, (0.0, 0.2))] == [
        "suffix:8~0.3>eagle3:3x6~0.1",
        "suffix:8~0.3>eagle3:3x6~0.2",
    ]
    assert variants(Arm("plain", 0), (0.0, 0.2)) == [Arm("plain", 0)] * 2


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_it_trains_resumes_and_exports(
    target: Target, traces_at: dict[float, TraceSet], tmp_path: Path, algorithm: str
) -> None:
    args = RouterArgs(
        traces=save_traces(traces_at[0.0], tmp_path / "traces"),
        run=tmp_path / "run",
        arms=ARMS,
        twice=True,
        algorithm=algorithm,
        rounds=128,
        ppo=RouterPPO(n_envs=4, n_steps=8, batch_size=16, n_epochs=1),
        dqn=RouterDQN(n_envs=4, learning_starts=16, batch_size=16, buffer_size=500),
    )
    folder = train_router(args)
    train_router(replace(args, rounds=192))
    policy = load_learned_policy(folder, target)
    assert policy.levels == LEVELS and policy.arms == CHOICES
    assert sum(text.rounds for text in play_policy(traces_at[0.0], policy)) > 0
    with pytest.raises(DraftgymError, match="cannot resume"):
        train_router(replace(args, twice=False, rounds=256))


def test_a_folder_with_other_levels_is_refused(target: Target, tmp_path: Path) -> None:
    policy = router(target)
    save_learned_policy(policy.network, CHOICES, target, tmp_path, {}, None, policy.levels)
    assert load_learned_policy(tmp_path, target).levels == policy.levels
    body = (tmp_path / "policy.json").read_text(encoding="utf-8")
    (tmp_path / "policy.json").write_text(body.replace("0.03", "3.0"), encoding="utf-8")
    with pytest.raises(DraftgymError, match="levels"):
        load_learned_policy(tmp_path, target)
