"""Vector environments are single environments side by side, in Gymnasium's own form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from numpy.typing import NDArray
from stable_baselines3 import PPO

from draftgym.agents.common.vec_env import SB3VecEnv
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.load.arrivals import Bursts
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.router.replay import RouterReplayEnv, RouterReplayVectorEnv
from draftgym.envs.scheduler.env import (
    SchedulerBeliefEnv,
    SchedulerEnv,
    SchedulerSharesEnv,
    SchedulerTiltEnv,
)
from draftgym.envs.scheduler.vector import VECTOR_FORMS
from draftgym.envs.serving.env import ServingEnv
from draftgym.envs.serving.vector import ServingVectorEnv
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.traces import handmade_traces
from tests.handmade.users import MODES, user_table

COUNT, STEPS, EPISODE = 3, 40, 11
SEEDS = [4, 9, 2]


def traces() -> TraceSet:
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


TRACES, TABLE = traces(), user_table()
PROMPTS = replace(
    TRACES, texts=[replace(one, prompt_tokens=3 + i) for i, one in enumerate(TRACES.texts)]
)
SERVER = ServerSettings(places=2, requests=3, arrivals=Bursts(80.0, 5.0, 0.1, 0.1))


class Kind:
    """An environment in both forms."""

    def __init__(self, single: Callable[[], gym.Env[Any, Any]], many: Callable[[], Any]) -> None:
        self.single, self.many = single, many

    def synchronous(self) -> VectorEnv[Any, Any, Any]:
        """Single environments behind Gymnasium's own vectoriser."""
        made = [self.single for _ in range(COUNT)]
        return SyncVectorEnv(made, autoreset_mode=AutoresetMode.SAME_STEP)


def cells(kind: type[SchedulerEnv], mode: str) -> Kind:
    """Cells of users at a fixed price, truncated early."""
    return Kind(
        lambda: gym.wrappers.TimeLimit(kind(TABLE, MODES[mode], price=2.0), EPISODE),
        lambda: VECTOR_FORMS[kind](COUNT, TABLE, MODES[mode], 2.0, max_episode_steps=EPISODE),
    )


KINDS = {
    "replay": Kind(lambda: RouterReplayEnv(TRACES), lambda: RouterReplayVectorEnv(COUNT, TRACES)),
    "lengths": cells(SchedulerEnv, "synchronous"),
    "beliefs": cells(SchedulerBeliefEnv, "everything"),
    "shares": cells(SchedulerSharesEnv, "window"),
    "tilts": cells(SchedulerTiltEnv, "everything"),
    "serving": Kind(
        lambda: ServingEnv(PROMPTS, server=SERVER, price=50.0),
        lambda: ServingVectorEnv(COUNT, PROMPTS, server=SERVER, price=50.0),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def told(infos: dict[str, Any]) -> dict[str, Any]:
    """Information in the form of single environments, whose ragged parts many do not tell."""
    found = {}
    for key, value in infos.items():
        if key.endswith(("tokens", "arm")):
            continue
        if isinstance(value, dict):
            found[key] = told(value)
        elif key == "question_ids":
            found[key] = [None if row is None else list(row) for row in value]
        else:
            found[key] = value.tolist() if value.dtype == object else value
    return found


def without_nobody(infos: dict[str, Any]) -> dict[str, Any]:
    """Lists that belong to nobody are None in one form and lists of None in the other."""
    for name in ("question_ids",):
        for part in (infos, infos.get("final_info", {})):
            if name in part:
                there = zip(part[name], part[f"_{name}"], strict=True)
                part[name] = [value if mine else None for value, mine in there]
    return infos


def test_many_are_single_environments_step_by_step(kind: Kind) -> None:
    """Gymnasium's vectoriser gives the same, information included."""
    many, single = kind.many(), kind.synchronous()
    assert many.observation_space == single.observation_space
    assert many.action_space == single.action_space
    assert many.metadata["autoreset_mode"] == single.metadata["autoreset_mode"]
    begun, known = many.reset(seed=SEEDS), single.reset(seed=SEEDS)
    assert data_equivalence(begun[0], known[0], exact=True)
    many.action_space.seed(0)
    ended = 0
    for _ in range(STEPS):
        action = many.action_space.sample()
        mine, theirs = many.step(action), single.step(action)
        assert data_equivalence(mine[0], theirs[0], exact=True)
        np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-12)
        np.testing.assert_array_equal(mine[2:4], theirs[2:4])
        ours, expected = (without_nobody(told(infos)) for infos in (mine[4], theirs[4]))
        assert ours.keys() == expected.keys()
        assert data_equivalence(ours, expected)
        ended += int((mine[2] | mine[3]).sum())
    assert ended > COUNT


def test_the_contract_of_gymnasium_is_kept(kind: Kind) -> None:
    """Spaces, types and fresh arrays; the same seed gives the same episodes."""
    runs = []
    for _ in range(2):
        env = kind.many()
        env.action_space.seed(1)
        seen = [env.reset(seed=7)]
        assert env.observation_space.contains(seen[0][0])
        for _ in range(STEPS):
            seen.append(env.step(env.action_space.sample()))
            observation, rewards, terminated, truncated, infos = seen[-1]
            assert env.observation_space.contains(observation)
            assert rewards.shape == terminated.shape == truncated.shape == (COUNT,)
            assert (rewards.dtype, terminated.dtype) == (np.float64, truncated.dtype)
            for key in infos:
                assert key.startswith("_") or infos[f"_{key}"].any()
        runs.append(seen)
        last = runs[-1][-1][0]
        kept = {key: value.copy() for key, value in last.items()}
        env.step(env.action_space.sample())
        assert data_equivalence(kept, last, exact=True), "returned data are not used again"
    assert data_equivalence(*runs, exact=True)
    other = kind.many().reset(seed=8)[0]
    assert not data_equivalence(runs[0][0][0], other)


def test_some_episodes_begin_anew_and_others_go_on(kind: Kind) -> None:
    busy, calm = kind.many(), kind.many()
    actions = np.stack([busy.single_action_space.sample() for _ in range(COUNT)])
    for env in (busy, calm):
        env.reset(seed=SEEDS)
        env.step(actions)
    mask = np.array([False, True, False])
    options = {"reset_mask": mask}
    begun, _ = busy.reset(seed=[1, 5, 1], options=options)
    assert "reset_mask" in options, "what was given stays as it was"
    alone = kind.single().reset(seed=5)[0]
    for key, value in alone.items():
        np.testing.assert_array_equal(begun[key][1], value)
    one, other = busy.step(actions), calm.step(actions)
    for key in one[0]:
        np.testing.assert_array_equal(one[0][key][~mask], other[0][key][~mask])


def test_impossible_calls_are_refused_with_a_remedy(kind: Kind) -> None:
    env = kind.many()
    for arguments, problem in [
        ({"seed": [1]}, "1 seeds for 3 episodes"),
        ({"options": {"reset_mask": np.zeros(COUNT, bool)}}, "reset_mask"),
        ({"options": {"reset_mask": np.ones(2, bool)}}, "reset_mask"),
    ]:
        with pytest.raises(DraftgymError, match=problem):
            env.reset(**arguments)
    env.reset(seed=0)
    with pytest.raises(DraftgymError, match="not in") as caught:
        env.step(np.full(env.action_space.shape, 99))
    assert "sample()" in caught.value.remedy


@pytest.mark.parametrize("name", ["RouterReplay", "Scheduler", "SchedulerBelief"])
def test_many_are_made_by_their_id(name: str) -> None:
    traces: TraceSet | ChainTable = TRACES if name == "RouterReplay" else TABLE
    env = gym.make_vec(f"draftgym/{name}-v0", num_envs=4, traces=traces)
    assert isinstance(env, (RouterReplayVectorEnv, *VECTOR_FORMS.values()))
    assert env.spec is not None and env.num_envs == 4
    statistics = RecordEpisodeStatistics(env)
    observation, _ = statistics.reset(seed=0)
    assert all(value.shape[0] == 4 for value in observation.values())
    lengths: list[int] = []
    for _ in range(300):
        *_, infos = statistics.step(statistics.action_space.sample())
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert lengths and (name == "RouterReplay" or set(lengths) == {256})


def test_one_seed_deals_every_text_before_any_comes_again() -> None:
    env = DictInfoToList(RouterReplayVectorEnv(COUNT, TRACES, ["plain"]))
    _, infos = env.reset(seed=3)
    seen = [info["question_id"] for info in infos]
    actions: NDArray[np.int64] = np.zeros(COUNT, np.int64)
    while len(seen) < 10:
        *_, infos = env.step(actions)
        seen += [info["question_id"] for info in infos if "question_id" in info]
    for half in (seen[:5], seen[5:10]):
        assert sorted(half) == sorted(text.question_id for text in TRACES.texts)


def test_an_episode_may_be_told_its_text() -> None:
    env = RouterReplayVectorEnv(COUNT, TRACES)
    wanted = TRACES.texts[2].question_id
    _, infos = env.reset(seed=0, options={"prompt": wanted})
    assert infos["question_id"].tolist() == [wanted] * COUNT
    with pytest.raises(DraftgymError, match="'missing'"):
        env.reset(options={"prompt": "missing"})


def test_stable_baselines_sees_the_same_episodes(kind: Kind) -> None:
    env, many = SB3VecEnv(kind.many(), seed=6), kind.many()
    assert data_equivalence(env.reset(), dict(many.reset(seed=6)[0]), exact=True)
    many.action_space.seed(2)
    returns, ended = np.zeros(COUNT), 0
    for _ in range(STEPS):
        actions = many.action_space.sample()
        observation, rewards, done, infos = env.step(actions)
        theirs, expected, terminated, truncated, told_by = many.step(actions)
        assert data_equivalence(observation, dict(theirs), exact=True)
        np.testing.assert_array_equal(rewards, expected.astype(np.float32))
        np.testing.assert_array_equal(done, terminated | truncated)
        returns += expected
        for index in np.flatnonzero(done):
            info = infos[index]
            assert info["TimeLimit.truncated"] == truncated[index]
            last = told_by["final_obs"][index]
            assert data_equivalence(info["terminal_observation"], last, exact=True)
            assert info["episode"]["r"] == pytest.approx(returns[index])
            returns[index], ended = 0.0, ended + 1
        assert not any(infos[index] for index in np.flatnonzero(~done))
    assert ended >= COUNT


def test_environments_that_restart_later_are_refused() -> None:
    later: VectorEnv[Any, Any, Any] = SyncVectorEnv([lambda: RouterReplayEnv(TRACES)])
    with pytest.raises(ValueError, match="same step"):
        SB3VecEnv(later)


def test_ppo_trains_on_many_cells() -> None:
    env = KINDS["lengths"].many()
    PPO("MultiInputPolicy", SB3VecEnv(env), n_steps=8, batch_size=16, n_epochs=1).learn(64)
    assert env.tokens > 64 and env.seconds > 0
