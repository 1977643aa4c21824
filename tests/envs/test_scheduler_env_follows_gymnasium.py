"""The scheduler environments keep Gymnasium's and Stable-Baselines3's contracts."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.env import (
    SchedulerBeliefEnv,
    SchedulerEnv,
    SchedulerSharesEnv,
    SchedulerTiltEnv,
)
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from tests.handmade.users import MODES, a_slow_place, user_table, user_traces

KINDS = [SchedulerEnv, SchedulerBeliefEnv, SchedulerSharesEnv, SchedulerTiltEnv]


@pytest.fixture(scope="module")
def table() -> ChainTable:
    return user_table()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_env_passes_both_checkers(kind: type[SchedulerEnv], mode: str, table: ChainTable) -> None:
    gymnasium_check(kind(table, MODES[mode]), skip_render_check=True)
    with warnings.catch_warnings():  # SB3 would rather have one row than one per user
        warnings.filterwarnings("ignore", message=".*unconventional shape.*")
        sb3_check(kind(table, MODES[mode]))


@pytest.mark.parametrize(
    "name", ["Scheduler", "SchedulerBelief", "SchedulerShares", "SchedulerTilt"]
)
def test_env_is_made_by_its_id_and_truncated(name: str) -> None:
    env = gym.make(f"draftgym/{name}-v0", traces=user_traces(), cell=MODES["synchronous"])
    assert env.spec is not None and env.spec.max_episode_steps == 256
    env = gym.make(f"draftgym/{name}-v0", traces=user_traces(), max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[2:4] for _ in range(2)] == [
        (False, False),
        (False, True),
    ]


@pytest.mark.parametrize("mode", MODES)
def test_observations_stay_in_their_space(mode: str, table: ChainTable) -> None:
    env = SchedulerEnv(table, MODES[mode])
    env.action_space.seed(0)
    observation, _ = env.reset(seed=1)
    for _ in range(40):
        assert env.observation_space.contains(observation)
        assert not observation["users"][observation["users"][:, 0] == 0].any()
        observation = env.step(env.action_space.sample())[0]
    assert observation["users"].shape == (3, len(USER_FEATURES))
    assert observation["cell"].shape == (len(CELL_FEATURES),)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_episode(kind: type[SchedulerEnv], table: ChainTable) -> None:
    env = kind(table, MODES["everything"])
    runs = []
    for _ in range(2):
        env.action_space.seed(3)
        seen = [env.reset(seed=7)[0]["users"]]
        for _ in range(20):
            observation, reward, *_ = env.step(env.action_space.sample())
            seen += [observation["users"], np.array(reward)]
        runs.append(seen)
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "action", [np.array([7, 0, 0]), np.array([-1, 0, 0]), np.array([0, 0]), np.array([0.5, 0, 0])]
)
def test_impossible_lengths_are_refused_with_a_remedy(
    action: np.ndarray, table: ChainTable
) -> None:
    env = SchedulerEnv(table, MODES["synchronous"])
    env.reset(seed=0)
    with pytest.raises(DraftgymError, match="not one of MultiDiscrete") as caught:
        env.step(action)
    assert "sample()" in caught.value.remedy


def test_impossible_shares_are_refused_with_a_remedy(table: ChainTable) -> None:
    env = SchedulerSharesEnv(table, MODES["synchronous"])
    env.reset(seed=0)
    for value in (np.nan, 1.5):
        with pytest.raises(DraftgymError, match="not one of Box"):
            env.step(np.full(6, value, np.float32))


def test_impossible_cells_are_refused_with_a_remedy(table: ChainTable) -> None:
    for changes, word in [
        ({"users": 0}, "users 0"),
        ({"window": -1.0}, "window"),
        ({"leaving": 2.0}, "leaving"),
        ({"setting": "multispin-lama2"}, "did you mean"),
        ({"payload": "text"}, "unknown payload"),
    ]:
        with pytest.raises(DraftgymError, match=word):
            CellSettings(**changes)  # type: ignore[arg-type]
    for settings, word in [
        (CellSettings(longest_draft=7), "7 tokens"),
        (CellSettings(means={"poetry/small:6": 0.5}), "unknown task"),
    ]:
        with pytest.raises(DraftgymError, match=word):
            SchedulerEnv(table, settings)
    with pytest.raises(DraftgymError, match="objective"):
        SchedulerEnv(table, objective="max")
    for arms, word in [(["small:3"], "not in these traces"), (["plain"], "chains")]:
        with pytest.raises(DraftgymError, match=word):
            ChainTable(user_traces(), arms)


def test_the_return_at_a_fixed_price_is_tokens_minus_priced_seconds(table: ChainTable) -> None:
    env = SchedulerEnv(table, MODES["everything"], price=3.0)
    env.action_space.seed(0)
    env.reset(seed=0)
    total, tokens, seconds = 0.0, 0, 0.0
    for _ in range(30):
        _, reward, _, _, info = env.step(env.action_space.sample())
        total, tokens = total + reward, tokens + int(info["committed"].sum())
        seconds += info["seconds"]["total"]
        pieces = sum(value for name, value in info["seconds"].items() if name != "total")
        assert pieces == pytest.approx(info["seconds"]["total"])
    assert total == pytest.approx(tokens - 3.0 * seconds)


def test_fair_rewards_count_tokens_of_the_slow_for_more(table: ChainTable) -> None:
    env = SchedulerEnv(table, MODES["synchronous"], price=0.0, objective="log")
    env.reset(seed=0)
    equal = env.step(np.zeros(3, np.int64))
    assert equal[1] == pytest.approx(3.0), "users who have had the same count the same"
    env.cell.users.tokens = env.cell.users.tokens * np.array([[0.5, 1.0, 2.0]])
    weights = env.reward.weights(env.cell)[0]
    assert weights[0] > weights[1] > weights[2]


def test_masks_leave_one_choice_to_who_is_not_asked(table: ChainTable) -> None:
    env = SchedulerEnv(table, MODES["window"])
    env.reset(seed=1)
    assert env.action_masks().all() and env.action_masks().shape == (3 * 7,)
    slow = a_slow_place(env.cell)
    env.step(np.where(slow, 6, 0))  # it is still drafting when the others are verified
    masks = env.action_masks().reshape(3, 7)
    np.testing.assert_array_equal(masks.sum(1), np.where(slow, 1, 7))


def test_a_line_per_place_is_rendered(table: ChainTable) -> None:
    env = SchedulerEnv(table, MODES["synchronous"], render_mode="ansi")
    env.reset(seed=0)
    assert str(env.render()).count("handmade-") == 3
    assert SchedulerEnv(table).render() is None
