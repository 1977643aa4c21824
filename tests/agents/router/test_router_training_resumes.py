"""Router training goes on where it stopped, and says what it did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN, PPO
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import train as train_in_memory
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.envs.router.live import RouterEnv
from draftgym.policies.routers.learned import (
    load_learned_policy,
)
from draftgym.rollouts.traces.file import read_traces
from tests.agents.router_runs import MODES, Train, agent_of, final_weights, rounds_of, weights_of
from tests.tiny import ARMS


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_training_changes_the_policy_and_a_seed_repeats_it(
    train: Train, tmp_path: Path, mode: str
) -> None:
    runs = [
        final_weights(train(run=tmp_path / name, seed=seed, **MODES[mode]))
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]
    ]
    for name, weight in runs[0].items():
        assert torch.equal(weight, runs[1][name]), name
    assert not torch.equal(runs[0]["scores.weight"], runs[2]["scores.weight"])
    short = final_weights(train(run=tmp_path / "short", seed=1, rounds=16, **MODES[mode]))
    assert not torch.equal(runs[0]["encoder.mix.weight"], short["encoder.mix.weight"])


@pytest.mark.slow
def test_a_resumed_run_goes_on_from_its_saved_rounds(train: Train) -> None:
    first = train(rounds=32)
    before = weights_of(first)
    assert rounds_of(first) == 32
    train(rounds=32)
    for name, weight in weights_of(first).items():
        assert torch.equal(weight, before[name]), "nothing was left to do"
    train(rounds=64)
    assert rounds_of(first) == 64
    assert not torch.equal(weights_of(first)["scores.weight"], before["scores.weight"])
    lines = (first.run / "metrics.jsonl").read_text().splitlines()
    seen = [json.loads(line)["time/total_timesteps"] for line in lines]
    assert seen == [16, 32, 48, 64]


def test_a_resumed_run_sees_other_prompts_than_at_its_start(train: Train) -> None:
    args = train(rounds=16)
    fresh, resumed = agent_of(replace(args, run=args.run / "fresh")), agent_of(args)
    assert resumed.num_timesteps == 16
    starts = [first_hidden(model) for model in (fresh, resumed)]
    assert not np.array_equal(starts[0], starts[1])


def first_hidden(model: PPO | DQN) -> NDArray[np.float32]:
    """What the target saw of the first prompt."""
    assert model.env is not None
    observation = model.env.reset()
    assert isinstance(observation, dict)
    return observation["hidden"]


def test_resuming_with_other_arms_is_refused(train: Train) -> None:
    args = train()
    config = (args.run / "config.json").read_text()
    for arms in [ARMS[:2], ("eagle3:2", *ARMS[1:])]:
        with pytest.raises(DraftgymError, match="was trained with arms") as caught:
            train(arms=arms)
        assert "--run" in caught.value.remedy
    assert (args.run / "config.json").read_text() == config, "a refusal leaves the run alone"


def test_resuming_a_damaged_run_is_refused(train: Train) -> None:
    args = train()
    saved = args.run / "model.zip"
    for body in [b"no zip", saved.read_bytes()[:500]]:
        saved.write_bytes(body)
        with pytest.raises(DraftgymError, match=r"cannot resume from .*model\.zip"):
            train()


def test_training_stops_when_the_minutes_are_up(train: Train, target: Target) -> None:
    args = train(rounds=10_000, minutes=0.0)
    assert rounds_of(args) == 1
    assert load_learned_policy(args.run / "policy", target).arms


def test_an_interrupted_run_keeps_its_work(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    played = []
    step = RouterEnv.step

    def interrupt(env: RouterEnv, action: int) -> object:
        played.append(action)
        if len(played) > 40:
            raise KeyboardInterrupt
        return step(env, action)

    monkeypatch.setattr(RouterEnv, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(rounds=100)
    monkeypatch.undo()
    assert int(PPO.load(tmp_path / "run" / "model.zip").num_timesteps) == 40


def test_metrics_reach_tensorboard(train: Train) -> None:
    args = train(rounds=48)
    events = EventAccumulator(str(args.run))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "charts/acceptance_length",
        "charts/tokens_per_target_step",
        "rollout/ep_rew_mean",
    } <= tags
    lengths = [event.value for event in events.Scalars("charts/acceptance_length")]
    assert len(lengths) == 3 and all(1 <= length <= 5 for length in lengths)
    shares = [tag for tag in tags if tag.startswith("arms/")]
    assert set(shares) <= {f"arms/{arm.replace(':', '_')}" for arm in ARMS}
    at_first = sum(
        events.Scalars(tag)[0].value for tag in shares if events.Scalars(tag)[0].step == 16
    )
    assert at_first == pytest.approx(1.0)


def test_a_run_folder_says_how_it_was_made(train: Train, costs: CostModel) -> None:
    args = train()
    config = json.loads((args.run / "config.json").read_text())
    assert (
        config["settings"]["arms"] == list(ARMS) and config["settings"]["live_ppo"]["n_steps"] == 16
    )
    assert {"cpu", "torch", "git_revision", "fingerprint"} <= set(config)
    assert CostModel.from_json((args.run / "cost_model.json").read_text()) == costs
    body = json.loads((args.run / "policy" / "policy.json").read_text())
    assert body["provenance"]["rounds"] == 32 and body["arms"] == list(ARMS)
    names = {path.name.partition(".tfevents")[0] for path in args.run.iterdir()}
    assert names == {
        *("config.json", "cost_model.json", "model.zip", "policy", "metrics.jsonl", "events.out"),
        ".lock",
    }


def test_on_traces_no_model_is_loaded_and_nothing_is_collected(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    for module in ("draftgym.decoding.model.target", "draftgym.agents.router.live"):
        monkeypatch.setattr(f"{module}.load_target", refuse)
    train(live=False)
    with pytest.raises(DraftgymError, match="no traces in") as caught:
        train(live=False, traces=tmp_path / "nowhere")
    assert f"draftgym collect --prompts train --out {tmp_path / 'nowhere'}" in caught.value.remedy
    assert "minutes" in caught.value.remedy and not (tmp_path / "nowhere").exists()


def test_loaded_traces_are_trained_on_in_memory(
    train: Train, settings: RouterArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = read_traces(settings.traces)
    filed = train(rounds=300, live=False, validation=0.5)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    policy = train_in_memory(traces, replace(filed, run=tmp_path / "unused"))
    assert sorted(tmp_path.rglob("*")) == before
    for name, weight in weights_of(filed).items():
        assert torch.equal(policy.network.state_dict()[name], weight), "the same best policy"


def test_settings_that_cannot_work_are_refused_with_a_remedy(train: Train) -> None:
    for changes, problem in [
        ({"algorithm": "sarsa"}, "unknown algorithm"),
        ({"algorithm": "dqn"}, "learned with PPO"),
        ({"latency_price": "cheap"}, "latency-price"),
        ({"init": Path("nowhere")}, "holds no agent"),
        ({"live": False, "arms": ("eagle3:16", "plain")}, "not in these traces"),
        ({"live": False, "categories": ("poetry",)}, "no trace of category"),
    ]:
        with pytest.raises(DraftgymError, match=problem):
            train(**changes)
