"""Router training goes on where it stopped, and what it exports is what it trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

import draftgym.agents.router.live
from draftgym.agents.common.settings import RouterDQN, RouterPPO
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.live import live_experience
from draftgym.agents.router.network import deployable_network
from draftgym.agents.router.train import (
    RouterTrainer,
    replayed_experience,
    train_router,
)
from draftgym.agents.router.train import train as train_in_memory
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.calibration import calibrate
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observation import Observation
from draftgym.envs.router.live import RouterEnv
from draftgym.policies.base import Policy
from draftgym.policies.registry import make_policy
from draftgym.policies.routers.learned import (
    LearnedPolicy,
    load_learned_policy,
    save_learned_policy,
)
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.replay.play import play_policy
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet
from tests.tiny import ARMS, PROMPTS, numbered_target
from tests.traces import save_traces, tiny_traces

TINY = RouterPPO(n_envs=1, n_steps=16, batch_size=8, n_epochs=2, width=16)
TINY_DQN = RouterDQN(n_envs=4, buffer_size=64, learning_starts=8, batch_size=8, width=16)
MODES = {"live": {"live": True}, "ppo": {"live": False}, "dqn": {"live": False, "algorithm": "dqn"}}
Train = Callable[..., RouterArgs]


@pytest.fixture(scope="module")
def costs(target: Target, drafters: dict[str, Drafter]) -> CostModel:
    return calibrate(target, drafters, repeats=1, contexts=(16, 64))


@pytest.fixture(scope="module")
def settings(
    target: Target, drafters: dict[str, Drafter], tmp_path_factory: pytest.TempPathFactory
) -> RouterArgs:
    """A tiny router's, with its traces and prompts."""
    folder = tmp_path_factory.mktemp("traces")
    prompts = folder / "prompts.jsonl"
    lines = [{"question_id": p.question_id, "turns": list(p.turns)} for p in PROMPTS]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RouterArgs(
        traces=save_traces(tiny_traces(target, drafters, max_new_tokens=24), folder),
        live=True,
        rounds=32,
        threads=1,
        arms=ARMS,
        prompts=str(prompts),
        max_new_tokens=24,
        ppo=TINY,
        live_ppo=TINY,
        dqn=TINY_DQN,
    )


@pytest.fixture
def train(
    settings: RouterArgs,
    target: Target,
    drafters: dict[str, Drafter],
    costs: CostModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Train:
    """Trains a tiny router with changed settings; returns the settings."""
    live, numbered = draftgym.agents.router.live, numbered_target(target)
    monkeypatch.setattr(live, "load_target", lambda *_: numbered)
    monkeypatch.setattr(live, "load_drafters", lambda *_: drafters)
    monkeypatch.setattr(live, "load_cost_model", lambda *_: costs)

    def run(**changes: object) -> RouterArgs:
        args = replace(settings, run=tmp_path / "run")
        args = replace(args, **changes)  # type: ignore[arg-type]
        train_router(args)
        return args

    return run


def weights_of(args: RouterArgs) -> dict[str, torch.Tensor]:
    """The exported weights of a run."""
    weights: dict[str, torch.Tensor] = load_file(args.run / "policy" / "policy.safetensors")
    return weights


def final_weights(args: RouterArgs) -> dict[str, torch.Tensor]:
    """The weights at the end of a run, which need not be the best ones."""
    return deployable_network(agent_of(args)).state_dict()


def rounds_of(args: RouterArgs) -> int:
    """Rounds that the saved agent has seen."""
    return int(PPO.load(args.run / "model.zip").num_timesteps)


def router_env(args: RouterArgs) -> RouterEnv:
    """The live environment of a run, bare."""
    return RouterEnv(
        target=draftgym.agents.router.live.load_target("patched"),
        drafters=draftgym.agents.router.live.load_drafters(None),  # type: ignore[arg-type]
        arms=args.arms,
        prompts=load_prompts(args.prompts),
        max_new_tokens=args.max_new_tokens,
        latency=draftgym.agents.router.live.load_cost_model(None, {}),  # type: ignore[arg-type]
    )


def agent_of(args: RouterArgs) -> PPO | DQN:
    """The agent that a run with these settings begins with."""
    experience = (
        live_experience(args) if args.live else replayed_experience(read_traces(args.traces), args)
    )
    return RouterTrainer(args, experience, args.run).agent


def observations(env: RouterEnv, count: int) -> Observation:
    """A batch of random ones."""
    rng = np.random.default_rng(0)
    signals, hidden = (env.observation_space[key].shape[0] for key in ("signals", "hidden"))  # type: ignore[index]
    return {
        "signals": rng.uniform(0, 3, (count, signals)).astype(np.float32),
        "hidden": rng.normal(size=(count, hidden)).astype(np.float32),
    }


@pytest.mark.parametrize("mode", MODES)
def test_the_exported_policy_acts_as_sb3s(train: Train, target: Target, mode: str) -> None:
    args = train(rounds=64, **MODES[mode])
    model, batch = agent_of(args), observations(router_env(args), 300)
    exported = args.run / "last"
    torch.manual_seed(0)
    with torch.no_grad():  # agents so young may choose one arm alone, which would show little
        for weight in model.policy.parameters():
            weight.add_(torch.randn_like(weight))
    network = deployable_network(model)
    save_learned_policy(network, [parse_arm(arm) for arm in ARMS], target, exported, {})
    wanted, _ = model.predict(batch, deterministic=True)
    actions, _ = load_learned_policy(exported, target).predict(batch, deterministic=True)
    assert len(set(wanted.tolist())) > 1
    assert actions.tolist() == wanted.tolist()


def test_the_exported_policy_samples_as_sb3s(train: Train) -> None:
    args = train()
    env, model = router_env(args), agent_of(args)
    with torch.no_grad():
        scores = model.policy.action_net
        assert isinstance(scores, torch.nn.Linear)
        scores.weight.normal_()  # young policies choose nearly at random
    one = observations(env, 1)
    tensors = {key: torch.from_numpy(value) for key, value in one.items()}
    choices = torch.arange(len(env.arms))
    model.policy.set_training_mode(False)  # as SB3 does wherever it acts
    distribution = model.policy.get_distribution(tensors)  # type: ignore[arg-type]
    probabilities = distribution.log_prob(choices).exp().detach()
    network = deployable_network(model)
    ours = network(**tensors).softmax(-1)[0].detach()
    torch.testing.assert_close(ours, probabilities)
    many = {key: np.repeat(value, 20_000, axis=0) for key, value in one.items()}
    drawn, _ = LearnedPolicy(network, env.arms).predict(many)
    shares = np.bincount(drawn, minlength=len(env.arms)) / len(drawn)
    assert float(probabilities.max()) > 0.4
    np.testing.assert_allclose(shares, probabilities.numpy(), atol=0.015)


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
        *("config.json", "cost_model.json", "model.zip", "policy", "metrics.jsonl", "events.out")
    }


@pytest.mark.parametrize("spec", ["plain", "eagle3:3", "learned"])
def test_sb3_evaluates_our_policies(
    train: Train, target: Target, drafters: dict[str, Drafter], spec: str
) -> None:
    args = train()
    policy: Policy = (
        load_learned_policy(args.run / "policy", target)
        if spec == "learned"
        else make_policy(spec, drafters, target)
    )
    arms = tuple(map(str, policy.arms))
    env, same = (router_env(replace(args, arms=arms)) for _ in range(2))
    env.reset(seed=5)
    returns, lengths = evaluate_policy(
        policy, Monitor(env), n_eval_episodes=3, return_episode_rewards=True
    )
    same.reset(seed=5)
    wanted = [play(same, policy) for _ in range(3)]
    assert isinstance(returns, list) and isinstance(lengths, list)
    assert returns == pytest.approx(wanted, abs=1e-4)
    if spec == "plain":
        assert returns == pytest.approx([0.0] * 3) and lengths == [23] * 3


def play(env: RouterEnv, policy: Policy) -> float:
    """Return of one episode, by hand."""
    observation, _ = env.reset()
    total, done = 0.0, False
    while not done:
        action, _ = policy.predict(observation, deterministic=True)
        observation, reward, done, _, _ = env.step(action)
        total += reward
    return total


def test_training_on_traces_exports_the_best_of_what_it_validated(train: Train) -> None:
    args = train(rounds=300, live=False, validation=0.5)
    best = json.loads((args.run / "best.json").read_text())["tokens_per_target_step"]
    body = json.loads((args.run / "policy" / "policy.json").read_text())
    assert body["provenance"]["validation_tokens_per_target_step"] == best
    _, aside = tiny_split(args)
    policy = load_learned_policy(
        args.run / "policy", draftgym.agents.router.live.load_target("patched")
    )
    played = play_policy(aside, policy)
    speed = sum(text.tokens for text in played) / sum(text.steps for text in played)
    assert speed == pytest.approx(best)


def tiny_split(args: RouterArgs) -> tuple[TraceSet, TraceSet]:
    """What a run trains on, and what it sets aside."""
    return read_traces(args.traces).split(args.validation)


def test_an_agent_trained_on_traces_goes_on_with_live_decoding(train: Train) -> None:
    first = train(live=False)
    tuned = train(live=True, init=first.run, run=first.run / "tuned", rounds=32)
    assert rounds_of(tuned) == 32, "counted anew"
    before = agent_of(replace(first, live=False))
    untouched = train(live=True, init=first.run, run=first.run / "same", rounds=1, minutes=0.0)
    inherited, after = final_weights(untouched), final_weights(tuned)
    for name, weight in deployable_network(before).state_dict().items():
        assert torch.equal(weight, inherited[name]), "a single round is no update"
    assert not torch.equal(after["scores.weight"], inherited["scores.weight"])


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
