"""Episodes on Ray are those of one process, and a lost worker ends episodes, not runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO

from draftgym.agents.common.vec_env import SB3VecEnv
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.on_ray import EnvHost, RayVectorEnv, joined
from draftgym.envs.router.replay import RouterReplayEnv, RouterReplayVectorEnv
from tests.handmade.traces import handmade_traces

pytestmark = pytest.mark.skipif(
    "DRAFTGYM_RAY_TESTS" not in os.environ, reason="DRAFTGYM_RAY_TESTS asks for it"
)
ROUNDS = 30


@pytest.fixture(scope="module")
def traces() -> Any:
    """Short texts on which two drafters accept differently."""
    rng = np.random.default_rng(0)
    return handmade_traces(
        {
            "eagle3:4": lambda signals, hidden: rng.geometric(0.3, len(signals)),
            "dflash:6": lambda signals, hidden: rng.geometric(0.5, len(signals)),
        },
        texts=5,
        length=14,
    )


def kill_workers(name: str) -> None:
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith(f"ray::{name}"):
            process.send_signal(signal.SIGKILL)


def play(env: Any, count: int = 4) -> list[Any]:
    """What seeded episodes of an environment give."""
    env.reset(seed=list(range(3, 3 + count)))
    rng = np.random.default_rng(1)
    return [env.step(rng.integers(3, size=count)) for _ in range(ROUNDS)]


def test_episodes_are_those_of_one_process(ray: Any, traces: Any) -> None:
    whole = play(RouterReplayVectorEnv(4, traces))
    env = RayVectorEnv(lambda: RouterReplayVectorEnv(2, traces), workers=2)
    assert env.num_envs == 4 and env.action_space.contains(env.action_space.sample())
    observation, infos = env.reset(seed=3)
    assert env.observation_space.contains(observation) and infos["_question_id"].all()
    found = play(env)
    for mine, theirs in zip(found, whole, strict=True):
        for one, other in zip(mine[:4], theirs[:4], strict=True):
            assert data_equivalence(one, other)
        assert mine[4].keys() == theirs[4].keys()
        for name in ("_final_obs", "committed"):
            np.testing.assert_array_equal(mine[4].get(name, []), theirs[4].get(name, []))
    env.close()


def test_a_lost_worker_is_a_truncated_episode(ray: Any, traces: Any) -> None:
    env = RayVectorEnv(lambda: RouterReplayVectorEnv(2, traces), workers=2)
    seen, _ = env.reset(seed=0)
    kill_workers("EnvHost")
    now, rewards, terminated, truncated, infos = env.step(np.zeros(4, np.int64))
    assert truncated.all() and not terminated.any() and not rewards.any() and env.lost == 2
    assert infos["final_info"]["worker_lost"].all()
    np.testing.assert_array_equal(infos["final_obs"][3]["hidden"], seen["hidden"][3])
    assert env.observation_space.contains(now) and infos["_question_id"].all()
    assert not env.step(np.zeros(4, np.int64))[3].any()
    env.close()


def test_a_worker_lost_between_two_steps_is_a_truncated_episode(ray: Any, traces: Any) -> None:
    """Ray has started it again by the next step, with no episode."""
    env = RayVectorEnv(lambda: RouterReplayVectorEnv(2, traces), workers=1)
    env.reset(seed=0)
    kill_workers("EnvHost")
    ray.get(env.actors[0].__ray_ready__.remote())
    assert env.step(np.zeros(2, np.int64))[3].all() and env.lost == 1
    assert not env.step(np.zeros(2, np.int64))[3].any()
    env.close()


def test_a_process_steps_no_episodes_of_another(traces: Any) -> None:
    host = EnvHost(lambda: RouterReplayVectorEnv(2, traces))
    assert host.call("step", np.zeros(2, np.int64)) is None
    host.call("reset", seed=[0, 1])
    assert len(host.call("step", np.zeros(2, np.int64))) == 5


def test_stable_baselines_learns_though_a_worker_is_lost(ray: Any, traces: Any) -> None:
    env = SB3VecEnv(RayVectorEnv(lambda: RouterReplayVectorEnv(4, traces), workers=1), seed=0)
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=32, device="cpu")
    model.learn(64)
    kill_workers("EnvHost")
    env.step_async(np.zeros(4, np.int64))
    _, _, done, infos = env.step_wait()
    assert done.all() and all(one["worker_lost"] and one["TimeLimit.truncated"] for one in infos)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 128
    env.close()


def test_single_environments_are_taken_where_they_begin_anew_at_once(ray: Any, traces: Any) -> None:
    def make(mode: AutoresetMode) -> Any:
        return SyncVectorEnv([lambda: RouterReplayEnv(traces)] * 2, autoreset_mode=mode)

    env = RayVectorEnv(lambda: make(AutoresetMode.SAME_STEP), workers=1)
    assert env.num_envs == 2 and len(play(env, 2)) == ROUNDS
    env.close()
    with pytest.raises(DraftgymError, match="not in the same step"):
        RayVectorEnv(lambda: make(AutoresetMode.NEXT_STEP), workers=1)


def test_mistakes_come_back_with_their_remedy(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="no traces in"):
        RayVectorEnv(lambda: RouterReplayVectorEnv(2, str(tmp_path)), workers=1)


def test_information_of_one_batch_is_nothing_in_others() -> None:
    some = {
        "steps": np.array([2.0]),
        "_steps": np.array([True]),
        "of": {"a": np.array(["x"], object)},
    }
    told = joined([{}, some], [2, 1])
    assert told["steps"].tolist() == [0, 0, 2] and told["_steps"].tolist() == [False, False, True]
    assert told["of"]["a"].tolist() == [None, None, "x"]
