"""The same seed and the same actions give the same episodes, whatever was played before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.load.arrivals import Poisson
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.router.live import RouterEnv
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.users import user_table, user_traces
from tests.tiny import ARMS, PROMPTS, numbered_target
from tests.traces import tiny_traces

CELLS = {
    "steady": CellSettings(users=3),
    "coming and going": CellSettings(users=4, leaving=0.5, fewest=1),
    "window": CellSettings(users=3, window=0.05, deadline=5.0),
    "old reports": CellSettings(users=3, report_rounds_old=2, report_error_db=3.0),
}
SCHEDULERS = ("Scheduler", "SchedulerBelief", "SchedulerShares", "SchedulerTilt")
VERSIONS = ("", "-v1")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def traces(target: Target, drafters: dict[str, Drafter]) -> TraceSet:
    return tiny_traces(target, drafters, max_new_tokens=24)


@pytest.fixture(scope="module")
def makers(
    target: Target, drafters: dict[str, Drafter], traces: TraceSet
) -> dict[str, Callable[[], Any]]:
    """Every registered environment, and its vector form, by a name."""
    live = {
        "target": numbered_target(target),
        "drafters": drafters,
        "arms": ARMS,
        "prompts": PROMPTS,
        "max_new_tokens": 12,
        "latency": traces.origin.cost_model,
    }
    makers: dict[str, Callable[[], Any]] = {}
    for price in (1.0, "goodput"):
        told = {"latency_price": price}
        router, replay = live | told, {"traces": traces} | told
        for version in VERSIONS:
            live_kind, kind = f"Router{version}", f"RouterReplay{version}"
            makers[f"{live_kind} {price}"] = _maker(live_kind, router)
            makers[f"{kind} {price}"] = _maker(kind, replay)
            makers[f"{kind} {price} vector"] = _maker(kind, replay, count=3)
    warm = live | {"temperature": 1.0, "latency_price": "goodput"}
    makers["Router at temperature 1"] = _maker("Router", warm)
    for name, cell in CELLS.items():
        settings: dict[str, Any] = {"traces": user_table(), "cell": cell, "objective": "log"}
        makers[f"Scheduler {name}"] = _maker("Scheduler", settings)
        makers[f"Scheduler {name} vector"] = _maker("Scheduler", settings, count=2)
    for kind in SCHEDULERS[1:]:
        makers[kind] = _maker(kind, {"traces": user_table()})
    server = ServerSettings(places=3, requests=6, arrivals=Poisson(60.0), prompt_rows=2)
    served = {"traces": user_traces(), "server": server}
    makers["Serving"] = _maker("Serving", served)
    makers["Serving vector"] = _maker("Serving", served, count=2)
    return makers


def _maker(kind: str, settings: dict[str, Any], count: int = 0) -> Callable[[], Any]:
    name = _id(kind)
    if not count:
        return lambda: gym.make(name, **settings)
    return lambda: gym.make_vec(name, num_envs=count, **settings)


def _id(kind: str) -> str:
    return f"draftgym/{kind}" if kind.endswith("-v1") else f"draftgym/{kind}-v0"


NAMES = (
    *(f"Router{kind}{version} {price}{form}" for version in VERSIONS for price in (1.0, "goodput")
      for kind, form in [("", ""), ("Replay", ""), ("Replay", " vector")]),
    "Router at temperature 1",
    *(f"Scheduler {name}{form}" for name in CELLS for form in ("", " vector")),
    *SCHEDULERS[1:],
    *("Serving", "Serving vector"),
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_repeats_what_was_seen_and_earned(
    makers: dict[str, Callable[[], Any]], name: str
) -> None:
    env = makers[name]()
    first = played(env, seed=7)
    played(env, seed=None)  # what must leave no trace
    assert flat(played(env, seed=7)) == flat(first)
    assert flat(played(env, seed=8)) != flat(first)


def played(env: Any, seed: int | None, steps: int = 25) -> list[Any]:
    """All that a reset and some steps with fixed actions tell, over several episodes."""
    env.action_space.seed(3)
    told = [env.reset(seed=seed)]
    for _ in range(steps):
        told.append(env.step(env.action_space.sample()))
        if np.ndim(told[-1][2]) == 0 and (told[-1][2] or told[-1][3]):
            told.append(env.reset())
    return told


def flat(told: Any) -> list[Any]:
    """Everything in it, in one list that can be compared."""
    if isinstance(told, dict):
        return [x for key in sorted(told) for x in [key, *flat(told[key])]]
    if isinstance(told, list | tuple):
        return [x for one in told for x in flat(one)]
    if isinstance(told, np.ndarray):
        return flat(told.tolist())
    return [repr(told)]


def test_every_registered_environment_is_tried() -> None:
    names = {name.split()[0] for name in NAMES}
    known = {spec for spec in gym.registry if spec.startswith("draftgym/")}
    assert known == {_id(name) for name in {*names, "RouterMeasured"}}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_outside_of_an_episode_is_refused(
    makers: dict[str, Callable[[], Any]], name: str
) -> None:
    env = makers[name]().unwrapped
    with pytest.raises(DraftgymError, match="belongs to no episode") as refused:
        env.step(env.action_space.sample())
    assert "reset()" in refused.value.remedy
    env.reset(seed=0)
    if not name.startswith("Router") or name.endswith("vector"):
        return  # these go on for ever, or begin anew by themselves
    done = False
    while not done:
        done = env.step(env.action_space.sample())[2]
    with pytest.raises(DraftgymError, match="belongs to no episode"):
        env.step(0)
    env.reset()
    env.step(0)


@pytest.mark.parametrize("name", NAMES)
def test_options_that_there_are_not_are_refused(
    makers: dict[str, Callable[[], Any]], name: str
) -> None:
    with pytest.raises(DraftgymError, match="no option 'promt'"):
        makers[name]().reset(options={"promt": "p0"})


@pytest.mark.parametrize("action", [-1, len(ARMS), 1.5, "1", None, [0]])
def test_what_is_no_arm_is_refused(makers: dict[str, Callable[[], Any]], action: object) -> None:
    env = makers["RouterReplay 1.0"]().unwrapped
    env.reset(seed=0)
    with pytest.raises(DraftgymError, match="is not one of the 4 arms"):
        env.step(action)


def test_prompts_are_a_list_or_a_file(
    target: Target, drafters: dict[str, Drafter], traces: TraceSet, tmp_path: Path
) -> None:
    costs: CostModel = traces.origin.cost_model

    def make(prompts: Any, **changes: Any) -> RouterEnv:
        return RouterEnv(numbered_target(target), drafters, ARMS, prompts, latency=costs, **changes)

    file = tmp_path / "prompts.jsonl"
    file.write_text('{"question_id": "a", "category": "chat", "turns": ["3"]}\n')
    for source in (file, str(file)):
        assert make(source).reset(seed=0)[1] == {"question_id": "a"}
    for wrong, problem in [([], "no prompt"), (["3"], "not a Prompt"), (tmp_path, "a folder")]:
        with pytest.raises(DraftgymError, match=problem):
            make(wrong)
    with pytest.raises(DraftgymError, match="price of 'cheap'"):
        make(PROMPTS, latency_price="cheap")
