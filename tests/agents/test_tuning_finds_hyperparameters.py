"""Tuning tries hyperparameters on texts that were set aside, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import draftgym.agents.router.tune as tune_module
from draftgym.agents.common.settings import RouterPPO
from draftgym.agents.router.tune import TuneArgs, suggest_dqn, tune
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.texts import handmade_set, handmade_text
from tests.tiny import ARMS
from tests.traces import save_traces, tiny_traces


def some_traces(*_: object) -> TraceSet:
    """For tests in which nobody trains."""
    return handmade_set([handmade_text({"a:2": [1, 2, 1]})])


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


@pytest.mark.slow
def test_a_study_that_was_cut_draws_what_a_whole_one_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    calls: list[int] = []

    def judge(args: TuneArgs, trial: optuna.Trial) -> float:
        made = suggest_dqn(trial)
        calls.append(trial.number)
        if args.run.name == "killed" and len(calls) == 5:
            raise KeyboardInterrupt
        return made.gamma - made.learning_rate

    monkeypatch.setattr("draftgym.agents.router.tune._judge", judge)
    monkeypatch.setattr("draftgym.agents.router.tune.open_traces", some_traces)

    def drawn(name: str, *trials: int) -> list[dict[str, float]]:
        args, calls[:] = TuneArgs(algorithm="dqn", run=tmp_path / name), []
        for count in trials:
            try:
                tune(replace(args, trials=count))
            except KeyboardInterrupt:
                continue
        study = optuna.load_study(study_name="dqn", storage=f"sqlite:///{args.run / 'study.db'}")
        return [trial.params for trial in study.trials if trial.value is not None]

    whole = drawn("whole", 14)  # the first ten are random, the others the sampler's choice
    assert len({str(params) for params in whole}) == 14
    assert drawn("cut", 3, 14) == whole
    assert drawn("killed", 14, 14) == whole


def test_processes_that_share_a_study_draw_what_no_other_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    def judge(args: TuneArgs, trial: optuna.Trial) -> float:
        return suggest_dqn(trial).gamma

    monkeypatch.setattr(tune_module, "_judge", judge)
    args = TuneArgs(algorithm="dqn", run=tmp_path, trials=3)
    study = tune_module._open_study(args)
    one, other, dying = study.ask(), study.ask(), study.ask()  # as three processes do at once
    values = [tune_module._try(args, trial) for trial in (dying, other, one)]
    assert len(set(values)) == 3
    surplus = study.ask()
    with pytest.raises(optuna.TrialPruned):
        tune_module._try(args, surplus)
    study.tell(surplus, state=optuna.trial.TrialState.PRUNED)  # as `optimize` does
    study.tell(dying, state=optuna.trial.TrialState.FAIL)
    assert tune_module._try(args, study.ask()) == values[0], "what the dead one drew"


def test_traces_that_are_not_there_are_told_before_any_trial(tmp_path: Path) -> None:
    with pytest.raises(DraftgymError, match="no traces in") as refused:
        tune(TuneArgs(run=tmp_path / "run", traces=tmp_path / "none"))
    assert "draftgym collect" in refused.value.remedy and not (tmp_path / "run").exists()


def test_a_damaged_study_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftgym.agents.router.tune.open_traces", some_traces)
    (tmp_path / "study.db").write_bytes(b"no database" * 99)
    with pytest.raises(DraftgymError, match=r"study\.db") as refused:
        tune(TuneArgs(run=tmp_path))
    assert "--run" in refused.value.remedy


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
