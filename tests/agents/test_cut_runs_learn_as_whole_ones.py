"""A run that is cut in two learns, number for number, like one in one piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftgym.agents.common.callbacks import BesideLearning
from draftgym.agents.common.settings import (
    BeliefFit,
    RouterDQN,
    RouterPPO,
    SchedulerPPO,
    SchedulerSAC,
)
from draftgym.agents.common.trainer import Trainer
from draftgym.agents.router.args import RouterArgs
from draftgym.agents.router.train import RouterTrainer, replayed_experience
from draftgym.agents.scheduler.args import SchedulerArgs
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.agents.scheduler.train import SchedulerTrainer
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from tests.handmade.users import user_traces
from tests.tiny import ARMS
from tests.traces import tiny_traces

ROUNDS = 128
CELL = CellArgs(users=3, fewest=1, deadline=2.0, leaving=0.3, absence=1.0, report_rounds_old=1)
SAC = SchedulerSAC(n_envs=4, learning_starts=32, batch_size=8, gradient_steps=2, width=8)
DQN = RouterDQN(
    n_envs=4, learning_starts=32, batch_size=8, width=8, target_update_interval=16, buffer_size=400
)
MODES: Mapping[str, dict[str, Any]] = {
    "router ppo": {"algorithm": "ppo"},
    "router dqn": {"algorithm": "dqn"},
    "router dqn, small buffer": {"algorithm": "dqn", "dqn": replace(DQN, buffer_size=40)},
    "scheduler ppo": {"algorithm": "ppo"},
    "scheduler ppo lengths": {"algorithm": "ppo", "actions": "lengths"},
    "scheduler sac": {"algorithm": "sac"},
    "scheduler sac shares": {"algorithm": "sac", "actions": "shares"},
}
Begin = Callable[..., Trainer[Any]]


@pytest.fixture(scope="module")
def begin(target: Target, drafters: dict[str, Drafter]) -> Begin:
    """Begins a run of a mode in a folder, or goes on with it."""
    texts = tiny_traces(target, drafters, max_new_tokens=24)
    common: dict[str, Any] = {"traces": Path("unread"), "rounds": ROUNDS, "threads": 1}
    ppo = RouterPPO(n_envs=4, n_steps=8, batch_size=8, n_epochs=2, width=8)
    router = RouterArgs(**common, arms=ARMS, validation=0.5, ppo=ppo, dqn=DQN)
    learning = SchedulerPPO(n_envs=4, n_steps=8, batch_size=8, n_epochs=2, width=8)
    fit = BeliefFit(rounds=4, epochs=1, batch_size=8)
    cells = SchedulerArgs(**common, cell=CELL, validation=0.3, ppo=learning, sac=SAC, fit=fit)
    users = user_traces(texts=18)

    def start(run: Path, mode: str, **changes: Any) -> Trainer[Any]:
        if mode.startswith("router"):
            args = replace(router, run=run, **(MODES[mode] | changes))
            return RouterTrainer(args, replayed_experience(texts, args), run)
        return SchedulerTrainer(replace(cells, run=run, **(MODES[mode] | changes)), users, run)

    return start


@pytest.fixture(autouse=True)
def _short_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftgym.agents.scheduler.train.CELLS", 4)
    monkeypatch.setattr("draftgym.agents.scheduler.train.ROUNDS", 8)


def cut(trainer: Trainer[Any], rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until these many rounds are done, and is interrupted there."""
    begins = BesideLearning._on_rollout_start

    def interrupt(self: BesideLearning) -> None:
        begins(self)
        if self.num_timesteps >= rounds:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(BesideLearning, "_on_rollout_start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()


def parameters(trainer: Trainer[Any]) -> list[torch.Tensor]:
    """All that is learned, optimisers included."""
    told: list[torch.Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            told.append(value.clone())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                collect(value[key])
        elif isinstance(value, list | tuple):
            for one in value:
                collect(one)

    collect(trainer.agent.get_parameters())
    return told


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_run_cut_in_two_learns_like_one_in_one_piece(
    begin: Begin, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begin(tmp_path / "whole", mode)
    first = parameters(whole)
    whole.train()
    cut(begin(tmp_path / "cut", mode), 64, monkeypatch)
    torch.manual_seed(99)
    np.random.seed(99)  # another process
    resumed = begin(tmp_path / "cut", mode)
    assert 64 <= resumed.agent.num_timesteps < ROUNDS
    resumed.train()
    assert resumed.agent.num_timesteps == whole.agent.num_timesteps
    wanted, reached = parameters(whole), parameters(resumed)
    assert len(wanted) == len(reached)
    assert all(torch.equal(a, b) for a, b in zip(wanted, reached, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, reached, strict=False))
    best = [json.loads((tmp_path / name / "best.json").read_text()) for name in ("whole", "cut")]
    assert best[0] == best[1]


@pytest.mark.parametrize("mode", ["router dqn", "scheduler sac"])
def test_without_its_buffer_a_run_waits_before_it_learns(
    begin: Begin, tmp_path: Path, mode: str
) -> None:
    begin(tmp_path, mode, rounds=64).train()
    longer = begin(tmp_path, mode, rounds=128)  # a finished run keeps no buffer
    assert longer.agent.replay_buffer.size() == 0
    assert longer.agent.learning_starts == 64 + 32


@pytest.mark.parametrize("mode", ["router ppo", "scheduler ppo"])
def test_episodes_of_another_world_do_not_go_on(
    begin: Begin, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(begin(tmp_path, mode), 64, monkeypatch)
    key = "latency_price" if mode.startswith("router") else "price"
    other = begin(tmp_path, mode, **{key: 0.5})
    assert other.env.reward.price == 0.5  # type: ignore[attr-defined]
    other.train()
    assert other.agent.num_timesteps == ROUNDS


@pytest.mark.parametrize("mode", ["router dqn", "scheduler sac"])
def test_a_write_that_breaks_off_leaves_agent_and_buffer_of_one_moment(
    begin: Begin, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(begin(tmp_path, mode), 64, monkeypatch)
    before = begin(tmp_path, mode)
    rounds, size = before.agent.num_timesteps, before.agent.replay_buffer.size()
    begins = "draftgym.agents.common.state.pickle.dump"
    with monkeypatch.context() as patched:
        patched.setattr(begins, lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            before.train()
    after = begin(tmp_path, mode)
    assert (after.agent.num_timesteps, after.agent.replay_buffer.size()) == (rounds, size)


@pytest.mark.parametrize("mode", ["router ppo"])
def test_a_damaged_state_is_refused(
    begin: Begin, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(begin(tmp_path, mode), 64, monkeypatch)
    model = tmp_path / "model.zip"
    data = bytearray(model.read_bytes())
    place = data.rindex(b"draftgym.pickle", 0, data.rindex(b"draftgym.pickle")) + 200
    data[place : place + 40] = bytes(40)
    model.write_bytes(data)
    with pytest.raises(DraftgymError, match=r"cannot resume from .*model\.zip"):
        begin(tmp_path, mode)
