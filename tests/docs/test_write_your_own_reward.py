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
from draftgym.rollouts.replay.play import play_policy
from tests.docs.test_documentation import ROOT, blocks
from tests.handmade_traces import handmade_traces
from tests.traces import save_traces

PAGE = ROOT / "docs" / "extend" / "reward.md"
QUICK = RouterPPO(n_envs=32, n_steps=16, batch_size=128, width=16, learning_rate=5e-3)


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
    (tmp_path / "runs").mkdir()
    save_traces(traces, tmp_path / "runs" / "traces")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "draftgym.RouterArgs", lambda **given: RouterArgs(**given | {"rounds": 8_192}, ppo=QUICK)
    )
    page: dict[str, object] = {}
    exec(compile(code, PAGE.name, "exec"), page)
    assert "a round with lookup:" in capsys.readouterr().out

    dear = lambda committed, steps, arms: committed - 9.0 * (arms == 0)  # noqa: E731
    args = RouterArgs(arms=page["ARMS"], rounds=8_192, ppo=QUICK, threads=1)  # type: ignore[arg-type]
    for reward, wanted in [(lambda committed, steps, arms: committed * 1.0, 0), (dear, 1)]:
        policy = training.train(traces, args, reward=reward)
        chosen = sum(text.chosen for text in play_policy(traces, policy))
        assert int(np.argmax(chosen)) == wanted, "it does what is paid"
    best = training.train(traces, replace(args, minutes=0.0))
    assert best.arms == policy.arms


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
