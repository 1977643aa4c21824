"""Scheduler training: seeds, resuming, the best policy, and an export that acts as SB3's agent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stable_baselines3 import PPO, SAC
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from draftgym.agents.common.settings import BeliefFit, SchedulerPPO, SchedulerSAC
from draftgym.agents.scheduler.args import SchedulerArgs
from draftgym.agents.scheduler.bounded_reward import BoundedReward, bounded
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.agents.scheduler.policy import acting_network
from draftgym.agents.scheduler.totals import play_cells
from draftgym.agents.scheduler.train import SchedulerTrainer, train_scheduler
from draftgym.agents.scheduler.train import train as train_in_memory
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import Observation
from draftgym.envs.cell.cell import Cell
from draftgym.envs.scheduler.observation import USER_FEATURES
from draftgym.envs.scheduler.planners import LearnedPlanner
from draftgym.envs.scheduler.vector import SchedulerVectorEnv
from draftgym.policies.schedulers.learned import load_scheduler
from draftgym.rollouts.traces.file import read_traces
from tests.handmade.users import user_table, user_traces
from tests.traces import save_traces

MODES = {
    "ppo": {},
    "ppo lengths": {"actions": "lengths"},
    "ppo tilts": {"actions": "tilts"},
    "sac": {"algorithm": "sac"},
    "sac shares": {"algorithm": "sac", "actions": "shares"},
}
Train = Callable[..., SchedulerArgs]


@pytest.fixture(scope="module", autouse=True)
def _short_validation() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("draftgym.agents.scheduler.train.CELLS", 4)
        patch.setattr("draftgym.agents.scheduler.train.ROUNDS", 8)
        yield


def tiny_settings(folder: Path) -> SchedulerArgs:
    """Those of a tiny scheduler, its traces in the folder."""
    save_traces(user_traces(texts=18), folder)
    return SchedulerArgs(
        traces=folder,
        run=folder / "run",
        rounds=64,
        validation=0.3,
        threads=1,
        cell=CellArgs(users=3, deadline=2.0, leaving=0.3, absence=1.0),
        ppo=SchedulerPPO(n_envs=4, n_steps=4, batch_size=8, n_epochs=2, width=16),
        fit=BeliefFit(rounds=4, epochs=1, batch_size=8),
        sac=SchedulerSAC(
            n_envs=4, buffer_size=64, learning_starts=16, batch_size=8, gradient_steps=1, width=16
        ),
    )


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains a tiny scheduler with changed settings; returns the settings."""
    settings = tiny_settings(tmp_path)

    def run(**changes: object) -> SchedulerArgs:
        args = replace(settings, **changes)  # type: ignore[arg-type]
        train_scheduler(args)
        return args

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SchedulerArgs]:
    """The settings of a mode's finished run, the same for all tests that only read it."""

    @cache
    def of(mode: str) -> SchedulerArgs:
        args = replace(tiny_settings(tmp_path_factory.mktemp("mode")), **MODES[mode])
        train_scheduler(args)
        return args

    return of


def trainer_of(args: SchedulerArgs) -> SchedulerTrainer:
    """What a run with these settings begins with."""
    return SchedulerTrainer(args, read_traces(args.traces), args.run)


def rounds_of(args: SchedulerArgs) -> int:
    """Rounds that the saved agent has seen."""
    kind = SAC if args.algorithm == "sac" else PPO
    return int(kind.load(args.run / "model.zip").num_timesteps)


def final_weights(args: SchedulerArgs) -> dict[str, torch.Tensor]:
    """The weights at the end of a run, which need not be the best ones."""
    return acting_network(trainer_of(args).agent.policy).state_dict()


def observations(args: SchedulerArgs, count: int) -> Observation:
    """Random ones, with places that are empty or do not decide."""
    rng = np.random.default_rng(0)
    users = rng.normal(size=(count, args.cell.users, len(USER_FEATURES))).astype(np.float32)
    users[..., 0] = rng.random(users.shape[:2]) < 0.8
    users[..., 1] = users[..., 0] * (rng.random(users.shape[:2]) < 0.8)
    users *= users[..., :1]
    return {"users": users, "cell": rng.normal(size=(count, 4)).astype(np.float32)}


@pytest.mark.parametrize("mode", MODES)
def test_the_exported_scheduler_acts_as_sb3s(
    trained: Callable[[str], SchedulerArgs], tmp_path: Path, mode: str
) -> None:
    args = trained(mode)
    trainer, batch = trainer_of(args), observations(args, 200)
    agent = trainer.agent
    torch.manual_seed(0)
    with torch.no_grad():  # agents so young say nearly the same everywhere
        for weight in agent.policy.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    trainer.run = tmp_path
    trainer.export(trainer.policy(), None)
    wanted, _ = agent.predict(batch, deterministic=True)
    actions, _ = load_scheduler(tmp_path / "policy", trainer.origin).predict(
        batch, deterministic=True
    )
    assert len(np.unique(wanted)) > 2
    np.testing.assert_allclose(actions, wanted, rtol=0, atol=1e-5)
    assert agent.action_space.contains(actions[0])


@pytest.mark.parametrize("mode", MODES)
def test_the_exported_scheduler_samples_as_sb3s(
    trained: Callable[[str], SchedulerArgs], tmp_path: Path, mode: str
) -> None:
    args = trained(mode)
    trainer = trainer_of(args)
    outputs = acting_network(trainer.agent.policy).outputs
    with torch.no_grad():  # far from the middle and wide, where kinds of noise differ most
        outputs.bias.copy_(torch.linspace(1.0, -0.5, outputs.out_features))
    trainer.run = tmp_path
    trainer.export(trainer.policy(), None)
    policy = load_scheduler(tmp_path / "policy", trainer.origin)
    seen = observations(args, 8)
    one = {name: value[seen["users"][..., 1].argmax(0)[:1]] for name, value in seen.items()}
    many = {name: np.repeat(value, 20_000, axis=0) for name, value in one.items()}
    deciding = np.resize(one["users"][0, :, 1] > 0, trainer.agent.action_space.shape)
    torch.manual_seed(0)
    wanted, drawn = (who.predict(many)[0][:, deciding] for who in (trainer.agent, policy))
    for quantity in (np.mean, np.std, lambda x, axis: (abs(x) >= 1).mean(axis)):
        ours, theirs = quantity(drawn, axis=0), quantity(wanted, axis=0)
        np.testing.assert_allclose(ours, theirs, rtol=0.03, atol=0.015)
    assert (np.std(drawn, axis=0) > 0.1).all()


@pytest.mark.parametrize("mode", MODES)
def test_what_was_trained_with_few_users_serves_many(
    trained: Callable[[str], SchedulerArgs], mode: str
) -> None:
    args = trained(mode)
    policy = load_scheduler(args.run / "policy", user_traces().origin)
    for users in (1, 2 * args.cell.users):
        cell = Cell(user_table(), replace(args.cell, users=users).settings(), 2)
        make = partial(LearnedPlanner, policy)
        reached = play_cells(make, cell, np.random.default_rng(0), 10)
        assert (reached.tokens >= 10).all() and np.isfinite(reached.goodput).all()


def test_ppo_never_draws_a_length_for_who_does_not_decide(train: Train) -> None:
    args = train(actions="lengths")
    agent, batch = trainer_of(args).agent, observations(args, 400)
    drawn, _ = agent.predict(batch, deterministic=False)
    deciding = batch["users"][..., 1] > 0
    assert (drawn[~deciding] == 0).all() and len(np.unique(drawn[deciding])) == 7


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
    assert not torch.equal(runs[0]["outputs.weight"], runs[2]["outputs.weight"])
    short = final_weights(train(run=tmp_path / "short", seed=1, rounds=16, **MODES[mode]))
    assert not torch.equal(runs[0]["pool.first.weight"], short["pool.first.weight"])


@pytest.mark.parametrize("mode", ["ppo", "sac"])
def test_a_resumed_run_goes_on_from_its_saved_rounds(train: Train, mode: str) -> None:
    args = train(rounds=32, **MODES[mode])
    assert rounds_of(args) == 32
    before = final_weights(args)
    train(rounds=32, **MODES[mode])
    for name, weight in final_weights(args).items():
        assert torch.equal(weight, before[name]), "nothing was left to do"
    train(rounds=96, **MODES[mode])
    assert rounds_of(args) == 96
    assert not torch.equal(final_weights(args)["outputs.weight"], before["outputs.weight"])


def test_resuming_other_actions_is_refused(train: Train) -> None:
    args = train()
    config = (args.run / "config.json").read_text()
    for changes, problem in [
        ({"cell": replace(args.cell, longest_draft=4)}, "longest_draft 6, asked for: 4"),
        ({"actions": "lengths"}, "head beliefs, asked for: lengths"),
        ({"cell": replace(args.cell, arms=("small:6",))}, "with arms"),
    ]:
        with pytest.raises(DraftgymError, match=problem) as caught:
            train(**changes)
        assert "--run" in caught.value.remedy
    assert (args.run / "config.json").read_text() == config, "a refusal leaves the run alone"


def test_training_exports_the_best_of_what_it_validated(train: Train) -> None:
    args = train(rounds=160)
    best = json.loads((args.run / "best.json").read_text())["tokens_per_second"]
    body = json.loads((args.run / "policy" / "policy.json").read_text())
    assert body["provenance"]["validation_tokens_per_second"] == best
    trainer, exported = trainer_of(args), load_file(args.run / "policy" / "policy.safetensors")
    acting_network(trainer.agent.policy).load_state_dict(exported)
    assert trainer.validate() == pytest.approx(best)
    assert trainer.policy().task_acceptance == body["task_acceptance"]
    policy = train_in_memory(read_traces(args.traces), replace(args, run=args.run / "unused"))
    for name, weight in exported.items():
        assert torch.equal(policy.network.state_dict()[name], weight), "the same best policy"
    assert not (args.run / "unused").exists()


def test_without_traces_nothing_is_collected(train: Train, tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="no traces in") as caught:
        train(traces=tmp_path / "nowhere")
    assert "draftgym collect --prompts train --arms small:16" in caught.value.remedy


def test_metrics_reach_tensorboard(train: Train) -> None:
    quick = SchedulerPPO(n_envs=64, n_steps=4, batch_size=256, n_epochs=1, width=8)
    args = train(rounds=4_000, ppo=quick)
    events = EventAccumulator(str(args.run))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    wanted = {"charts/goodput", "charts/user_rounds_per_second", "charts/draft_length"}
    assert wanted | {"losses/value_loss", "validation/tokens_per_second"} <= tags
    assert not any(tag.startswith("train/") for tag in tags)
    assert (args.run / "metrics.jsonl").read_text().count("\n") > 1


def test_a_run_folder_says_how_it_was_made(train: Train) -> None:
    args = train(minutes=0.0)
    config = json.loads((args.run / "config.json").read_text())
    assert config["settings"]["cell"]["users"] == 3
    assert {"cpu", "torch", "git_revision", "fingerprint"} <= set(config)
    body = json.loads((args.run / "policy" / "policy.json").read_text())
    assert body["arms"] == ["small:6", "ngram:8"] and body["longest_draft"] == 6
    assert "3 users" in (args.run / "policy" / "README.md").read_text()


def test_losses_are_bounded_and_keep_their_order() -> None:
    rewards = np.array([5.0, 0.0, -9.0, -9.1, -90.0, -9e6], np.float32)
    seen = bounded(rewards, 9.0)
    np.testing.assert_array_equal(seen[:3], rewards[:3])
    assert (np.diff(seen) < 0).all() and seen[-1] > -150
    cells = SchedulerVectorEnv(2, user_table(), CellArgs(users=3).settings())
    env = BoundedReward(cells)
    env.reset()
    env.step(np.full((2, 3), 6))
    assert env.most == 7.0 and cells.tokens > 0


def test_settings_that_cannot_work_are_refused_with_a_remedy(train: Train) -> None:
    for changes, problem in [
        ({"algorithm": "dqn"}, "unknown algorithm"),
        ({"actions": "shares"}, "ppo does not set shares"),
        ({"algorithm": "sac", "actions": "lengths"}, "sac does not set lengths"),
        ({"actions": "wishes"}, "does not set wishes"),
        ({"price": "cheap"}, "--price"),
        ({"objective": "max"}, "unknown objective"),
        ({"rounds": 0}, "--rounds"),
        ({"cell": CellArgs(users=0)}, "users 0"),
        ({"cell": CellArgs(arms=("small:9",))}, "not in these traces"),
    ]:
        with pytest.raises(DraftgymError, match=problem) as caught:
            train(**changes)
        assert caught.value.remedy
