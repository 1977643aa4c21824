"""The router environment keeps Gymnasium's and Stable-Baselines3's contracts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.envs.router.live import RouterEnv
from tests.tiny import ARMS, PROMPTS, numbered_target, tiny_costs


@pytest.fixture(scope="module")
def numbered(target: Target) -> Target:
    return numbered_target(target)


@pytest.fixture(scope="module")
def costs(numbered: Target, drafters: dict[str, Drafter]) -> CostModel:
    return tiny_costs(numbered, drafters)


@pytest.fixture
def make(
    numbered: Target, drafters: dict[str, Drafter], costs: CostModel
) -> Callable[..., RouterEnv]:
    def build(**changes: object) -> RouterEnv:
        settings = {
            "target": numbered,
            "drafters": drafters,
            "arms": ARMS,
            "prompts": PROMPTS,
            "max_new_tokens": 24,
            "latency": costs,
        }
        return RouterEnv(**(settings | changes))  # type: ignore[arg-type]

    return build


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_env_passes_both_checkers(make: Callable[..., RouterEnv], temperature: float) -> None:
    gymnasium_check(make(temperature=temperature), skip_render_check=True)
    sb3_check(make(temperature=temperature))


def test_env_is_made_by_its_id(
    numbered: Target, drafters: dict[str, Drafter], costs: CostModel
) -> None:
    env = gym.make(
        "draftgym/Router-v0",
        target=numbered,
        drafters=drafters,
        prompts=PROMPTS,
        latency=costs,
        max_episode_steps=2,
    )
    env.reset(seed=0)
    truncated = [env.step(0)[3] for _ in range(2)]
    assert truncated == [False, True]
    assert gym.spec("draftgym/RouterMeasured-v0").nondeterministic
    assert not gym.spec("draftgym/Router-v0").nondeterministic


def test_every_episode_writes_plain_decodings_text(
    make: Callable[..., RouterEnv], numbered: Target
) -> None:
    env = make()
    rng = np.random.default_rng(0)
    for prompt in PROMPTS:
        env.reset(seed=1, options={"prompt": prompt.question_id})
        done = False
        while not done:
            _, _, done, _, _ = env.step(rng.integers(len(ARMS)))
        plain = SpeculativeDecoder(numbered, {}, PlainPolicy())
        assert env.session.new_tokens == plain.generate(numbered.encode(prompt.text), 24).tokens


def test_return_is_the_target_steps_saved(make: Callable[..., RouterEnv]) -> None:
    env = make()
    env.reset(seed=0)
    total, steps, done = 0.0, 0.0, False
    while not done:
        _, reward, done, _, info = env.step(0)
        total, steps = total + reward, steps + info["target_steps"]
    assert total == pytest.approx(23 - steps)  # the first of 24 tokens comes with the prompt


def test_plain_rounds_earn_nothing(make: Callable[..., RouterEnv]) -> None:
    env = make()
    env.reset(seed=0)
    for _ in range(5):
        assert env.step(ARMS.index("plain"))[1] == pytest.approx(0.0)


def test_same_seed_same_episode(make: Callable[..., RouterEnv]) -> None:
    def play() -> list[float]:
        env = make(temperature=1.0)
        observation, _ = env.reset(seed=7)
        trace = [float(observation["signals"].sum())]
        for action in (0, 1, 2, 3, 1, 0):
            observation, reward, done, _, _ = env.step(action)
            trace += [float(observation["signals"].sum()), reward]
            if done:
                break
        return trace

    assert play() == play()


def test_prompts_come_once_each_before_any_repeats(make: Callable[..., RouterEnv]) -> None:
    env = make()
    seen = [env.reset(seed=3)[1]["question_id"]]
    seen += [env.reset()[1]["question_id"] for _ in PROMPTS[1:]]
    assert sorted(seen) == [prompt.question_id for prompt in PROMPTS]


def test_bad_settings_are_refused_with_a_remedy(make: Callable[..., RouterEnv]) -> None:
    for changes, word in [
        ({"latency": "guessed"}, "calibrated"),
        ({"arms": ["eagle:3"]}, "did you mean 'eagle3'"),
        ({"arms": ["dflash:99"]}, "at most 4"),
    ]:
        with pytest.raises(DraftgymError, match=word):
            make(**changes)
    env = make()
    with pytest.raises(DraftgymError, match="no prompt"):
        env.reset(options={"prompt": "missing"})
    env.reset(seed=0)
    with pytest.raises(DraftgymError, match="not one of"):
        env.step(len(ARMS))


def test_a_text_that_ends_at_once_is_skipped(
    make: Callable[..., RouterEnv], numbered: Target
) -> None:
    first = {
        prompt.question_id: SpeculativeDecoder(numbered, {}, PlainPolicy())
        .generate(numbered.encode(prompt.text), 2)
        .tokens[0]
        for prompt in PROMPTS
    }
    silent = first["p0"]
    env = make(target=replace(numbered, stop_tokens=frozenset({silent})))
    for _ in range(8):
        _, info = env.reset()
        assert first[info["question_id"]] != silent


def test_a_prompt_without_a_round_is_refused_by_name_alone(
    make: Callable[..., RouterEnv], numbered: Target
) -> None:
    plain = SpeculativeDecoder(numbered, {}, PlainPolicy())
    first = [plain.generate(numbered.encode(p.text), 2).tokens[0] for p in PROMPTS]
    env = make(target=replace(numbered, stop_tokens=frozenset(first[:1])))
    with pytest.raises(DraftgymError, match="'p0' has no round to play") as refused:
        env.reset(options={"prompt": "p0"})
    assert refused.value.remedy
    with pytest.raises(DraftgymError, match="belongs to no episode"):
        env.step(0)
    assert env.reset(options={"prompt": "p1"})[1] == {"question_id": "p1"}


def test_texts_without_any_round_are_refused(
    make: Callable[..., RouterEnv], numbered: Target
) -> None:
    everything = frozenset(range(numbered.vocab_size))
    env = make(target=replace(numbered, stop_tokens=everything))
    with pytest.raises(DraftgymError, match="no prompt has a round"):
        env.reset(seed=0)
    with pytest.raises(DraftgymError, match="episodes of 1 tokens"):
        make(max_new_tokens=1)
