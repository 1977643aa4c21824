"""Tune the hyperparameters of a router agent on traces (needs the extra `tune`).

    $ pip install 'draftgym[tune]'
    $ draftgym tune --trials 40
    $ draftgym tune --algorithm dqn --trials 40 --run runs/tune-dqn

Every trial trains a router for fewer rounds and is judged by its speed on texts that were set
aside. The study lies in the run folder and goes on when the command is given again, with the trials
that it would have drawn without a break. Prompts that results are reported on play no part in it.

The same command, given several times at once, shares the study: each process takes the next trial.
On several machines it lies in a database that all reach, with a run folder on each:

    $ draftgym tune --trials 400 --storage postgresql://tuner@host/studies

A process that dies takes no trial along: it is tried anew once its database has heard nothing of it
for some minutes.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import count, islice
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
    from optuna.trial import FrozenTrial


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
        storage: The study's database, as Optuna names it; default: a file in the run folder.
    """

    traces: Path = Path("runs/traces")
    run: Path = Path("runs/tune")
    arms: tuple[str, ...] = ()
    trials: int = 40
    rounds: int = 200_000
    validation: float = 0.25
    storage: str | None = None


HEARTBEAT, SILENCE = 60, 300
"""Seconds between signs of life of a trial, and without any until it counts as dead."""
DRAW = "draw"


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
    warnings.filterwarnings(
        "ignore", category=optuna.exceptions.ExperimentalWarning
    )  # signs of life
    study = _open_study(args)
    while len(_counted(study)) < args.trials:
        study.optimize(lambda trial: _try(args, trial), n_trials=1)
    return _report(args, study)


def _try(args: TuneArgs, trial: Trial) -> float:
    """One trial, with a sampler of its own, so that a resumed study draws what a whole one would.

    Its seed depends on a number that no other trial of the study has, in whichever process.
    """
    import optuna

    others = [one for one in _counted(trial.study) if one.number != trial.number]
    taken = {one.user_attrs[DRAW] for one in others if DRAW in one.user_attrs}
    before = sum(one.number < trial.number and DRAW not in one.user_attrs for one in others)
    draw = next(islice((one for one in count() if one not in taken), before, None))
    if draw >= args.trials:  # two processes saw the last one due
        raise optuna.TrialPruned
    trial.set_user_attr(DRAW, draw)
    seed = int(np.random.SeedSequence([args.seed, draw]).generate_state(1)[0])
    # Running trials count as bad ones, so that two processes do not try the same.
    trial.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return _judge(args, trial)


def _counted(study: Study) -> list[FrozenTrial]:
    """Trials that are done or under way, in whichever process."""
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    fail_stale_trials(study)
    states = [TrialState.COMPLETE, TrialState.RUNNING]
    found: list[FrozenTrial] = study.get_trials(deepcopy=False, states=states)
    return found


def _open_study(args: TuneArgs) -> Study:
    """The study of the database or the run folder, or a new one."""
    import optuna

    file = args.run / "study.db"
    told = args.storage or f"study {file}"
    try:
        storage = optuna.storages.RDBStorage(
            args.storage or f"sqlite:///{file}",
            heartbeat_interval=HEARTBEAT,
            grace_period=SILENCE,
            engine_kwargs={} if args.storage else {"connect_args": {"timeout": 60}},
        )
        return optuna.create_study(
            direction="maximize",
            study_name=args.algorithm,
            storage=storage,
            load_if_exists=True,
        )
    except Exception as error:  # of Optuna, SQLAlchemy or SQLite, each of many kinds
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        remedy = "name another --run, or delete the file"
        if args.storage:
            remedy = "check --storage: postgresql://USER@HOST/DATABASE, with its driver installed"
        raise DraftgymError(f"cannot read the {told}: {reason}", remedy) from error


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
    done = [trial for trial in study.trials if trial.value is not None]
    best = {
        "tokens_per_target_step": study.best_value,
        "trials": len(done),
        "settings": study.best_params,
    }
    write_json(args.run / "best.json", best | {"study": plain(asdict(args))})
    flags = " ".join(
        f"--{args.algorithm}.{name.replace('_', '-')} {value}"
        for name, value in study.best_params.items()
    )
    print(f"best of {len(done)}: {study.best_value:.4f} tokens per target step")
    print(f"draftgym train-router --algorithm {args.algorithm} {flags}")
    return best


def main(arguments: Sequence[str]) -> None:
    """`draftgym tune`."""
    tune(tyro.cli(TuneArgs, args=arguments, description=__doc__, prog="draftgym tune"))
