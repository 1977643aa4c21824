"""Tuning tries hyperparameters on texts that were set aside, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from draftgym.agents.common.settings import RouterPPO
from draftgym.agents.router.tune import TuneArgs, suggest_dqn, tune
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from tests.tiny import ARMS
from tests.traces import save_traces, tiny_traces


def test_a_study_goes_on_and_reports_its_best(
    target: Target,
    drafters: dict[str, Drafter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traces = tiny_traces(target, drafters, max_new_tokens=24)
    save_traces(traces, tmp_path)
    few = RouterPPO(n_envs=2, batch_size=8)
    monkeypatch.setattr("draftgym.agents.router.tune.RouterPPO", lambda: few)
    args = TuneArgs(
        traces=tmp_path, arms=ARMS, trials=1, rounds=64, run=tmp_path / "study", threads=1
    )
    first = tune(args)
    assert first["trials"] == 1
    second = tune(replace(args, trials=3))
    assert second["trials"] == 3, "two more, not three"
    values = [json.loads((args.run / f"trial-{i:04d}" / "best.json").read_text()) for i in range(3)]
    best = max(value["tokens_per_target_step"] for value in values)
    assert second["tokens_per_target_step"] == best >= first["tokens_per_target_step"]
    assert json.loads((args.run / "best.json").read_text())["settings"] == second["settings"]


def test_dqn_trials_stay_within_bounds() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    made = [suggest_dqn(study.ask()) for _ in range(20)]
    assert all(0 <= one.gamma <= 0.95 and 1 <= one.gradient_steps <= 8 for one in made)
    assert len({one.learning_rate for one in made}) == 20


def test_nothing_to_tune_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="nothing to tune"):
        tune(TuneArgs(run=tmp_path, algorithm="sarsa"))
