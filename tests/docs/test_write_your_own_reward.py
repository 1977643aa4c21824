"""The page "Write your own reward" trains a router for another goal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from draftgym.agents.common.settings import RouterPPO
from draftgym.agents.router import train as training
from draftgym.agents.router.args import RouterArgs
from draftgym.decoding.costs.cost_model import Curve
from draftgym.rollouts.replay.play import play_policy
from tests.docs.test_documentation import ROOT, blocks
from tests.handmade.traces import handmade_traces
from tests.traces import save_traces

PAGE = ROOT / "docs" / "extend" / "reward.md"
FREE = Curve((0, 50), (0.0, 0.0))
QUICK = RouterPPO(n_envs=32, n_steps=8, batch_size=64, width=16, learning_rate=1e-2)


def test_the_pages_reward_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks(PAGE, "python")[0]
    assert len(code.splitlines()) < 40
    traces = handmade_traces(
        {
            "eagle3:2": lambda signals, hidden: np.full(len(signals), 3),
            "ngram:8": lambda signals, hidden: np.full(len(signals), 2),
        },
        texts=12,
    )
    costs = traces.origin.cost_model
    lookup = {
        "draft": {**costs.draft, "ngram": FREE},
        "catch_up": {**costs.catch_up, "ngram": FREE},
    }
    origin = replace(traces.origin, cost_model=replace(costs, **lookup))
    traces = replace(traces, origin=origin)
    (tmp_path / "runs").mkdir()
    save_traces(traces, tmp_path / "runs" / "traces")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "draftgym.RouterArgs",
        lambda **given: RouterArgs(**given | {"rounds": 1_024}, ppo=QUICK, threads=1),
    )
    page: dict[str, object] = {}
    exec(compile(code, PAGE.name, "exec"), page)
    assert "a round with lookup:" in capsys.readouterr().out

    args = RouterArgs(arms=page["ARMS"], rounds=2_048, ppo=QUICK, threads=1)  # type: ignore[arg-type]
    for dear, wanted in [(1, 0), (0, 1)]:  # an arm that costs much, and who is best without it
        reward = lambda committed, steps, arms, dear=dear: committed - 1.0 - 9.0 * (arms == dear)  # noqa: E731
        policy = training.train(traces, args, reward)
        chosen = np.sum([text.chosen for text in play_policy(traces, policy)], axis=0)
        assert int(np.argmax(chosen)) == wanted, "it does what is paid"


def test_one_environment_takes_the_same_reward() -> None:
    arms = ("eagle3:2", "plain")
    traces = handmade_traces({"eagle3:2": lambda signals, hidden: np.full(len(signals), 2)})
    env = gym.make("draftgym/RouterReplay-v0", traces=traces, arms=arms)
    seen = []

    def reward(committed: np.ndarray, steps: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        seen.append((committed.tolist(), steps.tolist(), chosen.tolist()))
        return committed * 10.0 + chosen

    env.unwrapped.reward = reward  # type: ignore[attr-defined]
    env.reset(seed=0)
    for action in (0, 1):
        _, earned, _, _, info = env.step(action)
        assert earned == info["committed"] * 10.0 + action
        assert seen[-1] == ([info["committed"]], [info["target_steps"]], [action])
