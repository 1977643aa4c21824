"""The serving environment keeps Gymnasium's and Stable-Baselines3's contracts."""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.load.arrivals import AtOnce, Bursts, Poisson, Recorded, read_arrivals
from draftgym.envs.load.settings import LatencyObjective, ServerSettings
from draftgym.envs.serving.env import ServingEnv
from draftgym.policies.serving.observation import request_features, server_features
from tests.handmade.users import user_traces

TRACES = user_traces()
ARMS = ["plain", "small:6", "ngram:8>small:6"]
SERVER = ServerSettings(places=3, requests=6, arrivals=Poisson(60.0), prompt_rows=2)


def test_env_passes_both_checkers() -> None:
    gymnasium_check(ServingEnv(TRACES, ARMS, SERVER), skip_render_check=True)
    with warnings.catch_warnings():  # SB3 would rather have one row than one per request
        warnings.filterwarnings("ignore", message=".*unconventional shape.*")
        sb3_check(ServingEnv(TRACES, ARMS, SERVER))


def test_env_is_made_by_its_id_with_every_traced_arm() -> None:
    env = gym.make("draftgym/Serving-v0", traces=TRACES, server=SERVER)
    assert env.action_space == gym.spaces.MultiDiscrete([3, 3, 3])
    many = gym.make_vec("draftgym/Serving-v0", num_envs=2, traces=TRACES, server=SERVER)
    assert many.single_action_space == env.action_space


def test_observations_stay_in_their_space_and_empty_places_are_zero() -> None:
    env = ServingEnv(TRACES, ARMS, SERVER)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=1)
    done, states = False, set()
    while not done:
        assert env.observation_space.contains(observation)
        requests = observation["requests"]
        assert not requests[requests[:, 0] == 0].any(), "nobody is there"
        assert not requests[requests[:, 1] == 0][:, 5:].any(), "the first token is not there yet"
        np.testing.assert_array_equal(requests[:, 0] > 0, env.load.active[0])
        np.testing.assert_array_equal(requests[:, 1] > 0, env.load.deciding[0])
        states |= {tuple(row) for row in requests[:, :2].tolist()}
        observation, _, done, _, _ = env.step(env.action_space.sample())
    assert len(states) == 3
    assert requests.shape == (3, len(request_features(env.load.arms, env.load.lookups)))
    assert observation["server"].shape == (len(server_features(env.load.arms)),)


def test_masks_leave_one_arm_to_who_is_not_asked() -> None:
    env = ServingEnv(TRACES, ARMS, SERVER)
    env.reset(seed=0)
    done = False
    while not done:
        masks = env.action_masks().reshape(3, len(ARMS))
        np.testing.assert_array_equal(masks.sum(1), np.where(env.load.deciding[0], 3, 1))
        done = env.step(np.zeros(3, np.int64))[2]


def test_what_is_said_of_others_changes_nothing() -> None:
    seen = []
    for other in (0, 2):
        env = ServingEnv(TRACES, ARMS, SERVER)
        env.reset(seed=2)
        rewards, done = [], False
        while not done:
            action = np.where(env.load.deciding[0], 1, other)
            _, reward, done, _, _ = env.step(action)
            rewards.append(reward)
        seen.append(rewards)
    assert seen[0] == seen[1]


def test_mistakes_are_refused_with_a_remedy(tmp_path: Path) -> None:
    for make, word in [
        (lambda: ServerSettings(places=0), "places 0"),
        (lambda: ServerSettings(copies=0), "copies 0"),
        (lambda: LatencyObjective(first_token=0.0), "objective"),
        (lambda: Poisson(0.0), "rate 0"),
        (lambda: Bursts(1.0, -1.0), "quiet_rate"),
        (lambda: Recorded((3.0, 1.0)), "ascend"),
        (lambda: read_arrivals(tmp_path / "none.json"), "none.json"),
        (lambda: ServingEnv(TRACES, ["eagle3:4"], SERVER), "not in these traces"),
        (lambda: ServingEnv(TRACES, ARMS, SERVER, "speed"), "unknown objective"),
        (lambda: ServingEnv(TRACES, ARMS, SERVER, price="dear"), "a price"),
        (lambda: ServingEnv(TRACES, ARMS, ServerSettings(costs="h200")), "no measured host|h200"),
        (lambda: ServingEnv(TRACES, ARMS, ServerSettings(mixture={"prose": 1.0})).reset(), "prose"),
    ]:
        with pytest.raises(DraftgymError, match=word) as refused:
            make()
        assert refused.value.remedy
    env = ServingEnv(TRACES, ARMS, SERVER)
    with pytest.raises(DraftgymError, match="no episode"):
        env.step(np.zeros(3, np.int64))
    env.reset(seed=0)
    with pytest.raises(DraftgymError, match="is not one of MultiDiscrete"):
        env.step(np.array([0, 0, 3]))


def test_mixtures_ask_for_their_categories_alone() -> None:
    env = ServingEnv(TRACES, ARMS, ServerSettings(2, 40, AtOnce(), mixture={"code": 2.0}))
    env.reset(seed=0)
    texts = env.load.requests.text[0]
    assert {env.load.texts.texts[one].category for one in texts} == {"code"}
    assert len(set(texts[:3])) == 3, "each text once before any comes again"


@pytest.mark.parametrize(
    ("arrivals", "rate"),
    [
        (Poisson(4.0), 4.0),
        (Bursts(8.0, 1.0, 2.0, 6.0), 2.75),
        (Recorded((1.0, 2.0, 5.0), 2.0), 1.0),
    ],
)
def test_arrivals_come_at_their_rate(arrivals: Poisson | Bursts | Recorded, rate: float) -> None:
    times = arrivals.times(np.random.default_rng(0), 20_000)
    assert (np.diff(times) >= 0).all() and times[0] >= 0
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.1)


def test_recorded_arrivals_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[3, 1, 2.5]")
    (tmp_path / "a.csv").write_text("Timestamp,Model\n3,x\n1,y\n2.5,x\n")
    for name in ("a.json", "a.csv"):
        assert read_arrivals(tmp_path / name).at == (1.0, 2.5, 3.0)
    with pytest.raises(DraftgymError, match="no column 'when'"):
        read_arrivals(tmp_path / "a.csv", "when")


def test_a_line_per_request_is_rendered() -> None:
    env = ServingEnv(TRACES, ARMS, SERVER, render_mode="ansi")
    env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    assert "handmade-" in str(env.render())
    assert ServingEnv(TRACES, ARMS, SERVER).render() is None
