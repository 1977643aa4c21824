"""Tune the hyperparameters of a router agent on traces (needs the extra `tune`).

    $ pip install 'draftgym[tune]'
    $ draftgym tune --trials 40
    $ draftgym tune --algorithm dqn --trials 40 --run runs/tune-dqn

Every trial trains a router for fewer rounds and is judged by its speed on texts that were set
aside. The study lies in the run folder and goes on when the command is given again, with the trials
that it would have drawn without a break. Prompts that results are reported on play no part in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from draftgym.agents.common.settings import RouterDQN, RouterPPO, TrainArgs
from draftgym.agents.common.trainer import open_traces
from draftgym.agents.router.args import ALGORITHMS, RouterArgs, check_args
from draftgym.agents.router.train import COLLECT, train_router
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json, write_json
from draftgym.decoding.provenance import check_run_folder, plain
from draftgym.decoding.verify.seeds import check_seed

if TYPE_CHECKING:
    from optuna import Study, Trial


@dataclass(frozen=True, kw_only=True)
class TuneArgs(TrainArgs):
    """Tune a router agent.

    Attributes:
        traces: Folder of traces of training prompts.
        run: Folder of the study.
        algorithm: ppo or dqn.
        arms: What the router chooses from; default as of `draftgym train-router`.
        trials: Trials in all, earlier ones included.
        rounds: Rounds per trial.
        minutes: Most minutes of a trial.
        validation: Share of the texts that trials are judged by.
        seed: Seed of the search and of every trial.
    """

    traces: Path = Path("runs/traces")
    run: Path = Path("runs/tune")
    arms: tuple[str, ...] = ()
    trials: int = 40
    rounds: int = 200_000
    validation: float = 0.25


def tune(args: TuneArgs) -> dict[str, Any]:
    """Searches; returns and writes (`best.json`) the best hyperparameters.

    Raises:
        DraftgymError: Bad settings, or Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise DraftgymError("Optuna is missing", "pip install 'draftgym[tune]'") from error
    if args.trials < 1 or args.algorithm not in ALGORITHMS:
        raise DraftgymError(
            "there is nothing to tune",
            f"give --trials of at least 1 and one of {', '.join(ALGORITHMS)}",
        )
    trial = _router_args(args, args.run)
    check_args(trial)
    check_seed(args.seed)
    traces = open_traces(args.traces, COLLECT.format(folder=args.traces))
    traces.check_arms(map(parse_arm, args.arms))  # now, rather than once in every trial
    check_run_folder(args.run)
    study = _open_study(args)
    finished = sum(trial.value is not None for trial in study.trials)
    for done in range(finished, args.trials):
        # Each trial has a seed of its own, so that a resumed study draws what a whole one would.
        seed = int(np.random.SeedSequence([args.seed, done]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        study.optimize(lambda trial: _judge(args, trial), n_trials=1)
    return _report(args, study)


def _open_study(args: TuneArgs) -> Study:
    """The run folder's study, or a new one."""
    import optuna

    file = args.run / "study.db"
    try:
        return optuna.create_study(
            direction="maximize",
            study_name=args.algorithm,
            storage=f"sqlite:///{file}",
            load_if_exists=True,
        )
    except Exception as error:  # of Optuna, SQLAlchemy or SQLite, each of many kinds
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DraftgymError(
            f"cannot read the study {file}: {reason}", "name another --run, or delete the file"
        ) from error


def suggest_ppo(trial: Trial) -> RouterPPO:
    """Hyperparameters of a PPO trial."""
    return replace(
        RouterPPO(),
        n_steps=trial.suggest_categorical("n_steps", [4, 8, 16, 32]),
        n_epochs=trial.suggest_int("n_epochs", 1, 6),
        learning_rate=trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-3, 1.0, log=True),
        gamma=trial.suggest_float("gamma", 0.0, 0.95),
        ent_coef=trial.suggest_float("ent_coef", 1e-4, 0.1, log=True),
        width=trial.suggest_categorical("width", [16, 32, 64, 128]),
    )


def suggest_dqn(trial: Trial) -> RouterDQN:
    """Hyperparameters of a DQN trial."""
    return replace(
        RouterDQN(),
        gradient_steps=trial.suggest_int("gradient_steps", 1, 8),
        learning_rate=trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-3, 1.0, log=True),
        gamma=trial.suggest_float("gamma", 0.0, 0.95),
        width=trial.suggest_categorical("width", [16, 32, 64, 128]),
    )


def _judge(args: TuneArgs, trial: Trial) -> float:
    """Trains one router; its speed on the texts set aside, in tokens per target step."""
    run = args.run / f"trial-{trial.number:04d}"
    shutil.rmtree(run, ignore_errors=True)  # a killed trial's number is given out again
    chosen: dict[str, Any] = (
        {"ppo": suggest_ppo(trial)} if args.algorithm == "ppo" else {"dqn": suggest_dqn(trial)}
    )
    train_router(replace(_router_args(args, run), **chosen))
    best = read_json(run / "best.json", f"delete {run}")
    return float(best["tokens_per_target_step"])


def _router_args(args: TuneArgs, run: Path) -> RouterArgs:
    """What a trial trains with, hyperparameters aside."""
    given = {field.name: getattr(args, field.name) for field in fields(TrainArgs)}
    return RouterArgs(**given | {"run": run, "arms": args.arms, "algorithm": args.algorithm})


def _report(args: TuneArgs, study: Study) -> dict[str, Any]:
    best = {
        "tokens_per_target_step": study.best_value,
        "trials": len(study.trials),
        "settings": study.best_params,
    }
    write_json(args.run / "best.json", best | {"study": plain(asdict(args))})
    flags = " ".join(
        f"--{args.algorithm}.{name.replace('_', '-')} {value}"
        for name, value in study.best_params.items()
    )
    print(f"best of {len(study.trials)}: {study.best_value:.4f} tokens per target step")
    print(f"draftgym train-router --algorithm {args.algorithm} {flags}")
    return best


def main(arguments: Sequence[str]) -> None:
    """`draftgym tune`."""
    tune(tyro.cli(TuneArgs, args=arguments, description=__doc__, prog="draftgym tune"))
