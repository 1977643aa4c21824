"""Training watches acceptance on texts set aside, keeps the best weights, stops when it falls."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import describe_host, plain
from draftgym.drafters.loading import load_folder
from draftgym.drafters.training.loop.card import card
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.loop.trainer import Trainer
from draftgym.drafters.training.main import Eagle3Args, Eagle3Settings, ObjectiveSettings, train
from draftgym.drafters.training.objectives.losses import LossSettings
from draftgym.drafters.training.objectives.objective import Objective, RecordedObjective
from draftgym.drafters.training.objectives.vsd import VSDSettings
from tests.drafters.training.setups import (
    KINDS,
    corpus_of,
    objective_of,
    same_weights,
    stopping_after,
    write_texts,
)
from tests.tiny_text import save_target

CONFIG = TrainerConfig(updates=20, batch_size=2, save_minutes=99, measure_updates=2, patience=3)
SCRIPT = [1.0, 1.5, 1.2, 2.0, 1.9, 2.0, 1.1]
"""Acceptance at updates 0, 2, .. 12: best at 6, equalled at 10, not beaten three times at 12."""
TIMED = {"minutes", "tokens_per_second", "gflops", "matmul_peak_gflops"}


class Scripted:
    """A watch that hands out given figures, one per set of weights, and knows them again."""

    def __init__(self, script: list[float]) -> None:
        self.script, self.known, self.calls = script, dict[str, float](), 0
        self.hook: Callable[[], None] = lambda: None

    def value_of(self, folder: Path) -> float | None:
        """What was said about the weights in a folder."""
        return self.known.get(digest(folder))

    def __call__(self, folder: Path) -> dict[str, float]:
        """The figure of these weights; new ones get the next of the script."""
        self.hook()
        self.calls += 1
        if self.value_of(folder) is None:
            self.known[digest(folder)] = self.script[len(self.known)]
        return {"acceptance_length": self.known[digest(folder)]}


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def trainer_of(
    target: Target,
    folder: Path,
    watch: Scripted | None,
    config: TrainerConfig = CONFIG,
    objective: Objective | None = None,
) -> Trainer:
    """A trainer with a fresh EAGLE-3 head, or another objective."""
    objective = objective or objective_of("eagle3", target)
    return Trainer(objective, target, corpus_of(target), folder, config, watch)


def outcome(trainer: Trainer) -> dict[str, Any]:
    """All that must not depend on interruptions."""
    progress = trainer.progress
    lines = (trainer.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == progress.history
    return {
        "updates": progress.updates,
        "best": (progress.best_updates, progress.best_value, progress.worse),
        "history": [
            {name: value for name, value in entry.items() if name not in TIMED}
            for entry in progress.history
        ],
        "checkpoint": digest(trainer.checkpoint),
        "latest": digest(trainer.latest),
    }


def test_the_best_is_kept_and_training_stops_when_it_is_not_beaten(
    target: Target, tmp_path: Path
) -> None:
    watch = Scripted(SCRIPT)
    trainer = trainer_of(target, tmp_path, watch)
    progress = trainer.run()
    assert (progress.updates, progress.best_updates, progress.best_value) == (12, 6, 2.0)
    assert watch.value_of(trainer.checkpoint) == 2.0
    assert list(watch.known).index(digest(trainer.checkpoint)) == 3  # the first of the two
    assert watch.value_of(trainer.latest) == 1.1
    measured = [entry for entry in progress.history if "acceptance_length" in entry]
    assert [entry["updates"] for entry in measured] == [0, 2, 4, 6, 8, 10, 12]
    assert [entry["acceptance_length"] for entry in measured] == SCRIPT
    told = [entry["best_updates"] for entry in progress.history if "best_updates" in entry]
    assert told == [0, 2, 2, 6, 6, 6, 6]


def test_training_that_only_harms_keeps_what_it_started_from(
    target: Target, tmp_path: Path
) -> None:
    objective_of("eagle3", target).export(tmp_path / "start", target)
    trainer = trainer_of(target, tmp_path / "run", Scripted([2.0, 1.9, 1.8, 1.7]))
    assert trainer.run().updates == 6
    assert digest(trainer.checkpoint) == digest(tmp_path / "start")
    assert digest(trainer.latest) != digest(tmp_path / "start")


def test_without_patience_the_whole_budget_is_trained_and_the_best_still_kept(
    target: Target, tmp_path: Path
) -> None:
    watch = Scripted([2.0, 3.0, *[1.0] * 9])
    trainer = trainer_of(target, tmp_path, watch, replace(CONFIG, patience=0))
    assert trainer.run().updates == 20
    assert watch.value_of(trainer.checkpoint) == 3.0


def test_without_a_watch_the_latest_weights_are_the_checkpoint(
    target: Target, tmp_path: Path
) -> None:
    trainer = trainer_of(target, tmp_path / "run", None)
    assert trainer.run().updates == 20
    trainer.objective.export(tmp_path / "last", target)
    assert digest(trainer.checkpoint) == digest(tmp_path / "last")
    assert not trainer.latest.exists()


CUTS = {
    "eagle3": [("update", 1), ("update", 9), ("watch", 3)],
    "dflash": [("update", 9)],
    "vsd": [("update", 9)],
    "small": [("watch", 3)],
}
"""Where runs of each kind are interrupted: every way once, every kind in some way."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_keeps_the_same_best_and_stops_at_the_same_update(
    target: Target, tmp_path: Path, kind: str
) -> None:
    watch = Scripted(SCRIPT)
    alone = trainer_of(target, tmp_path / "alone", watch, objective=objective_of(kind, target))
    alone.run()

    def interrupt() -> None:
        if watch.calls == stop_at:
            watch.hook = lambda: None
            raise KeyboardInterrupt

    for where, calls in CUTS[kind]:
        part, folder = objective_of(kind, target), tmp_path / f"{where}-{calls}"
        if where == "update":
            part = stopping_after(part, calls, KeyboardInterrupt())
        else:
            stop_at, watch.hook = watch.calls + calls, interrupt
        with pytest.raises(KeyboardInterrupt):
            trainer_of(target, folder, watch, objective=part).run()
        resumed = trainer_of(target, folder, watch, objective=objective_of(kind, target))
        resumed.run()
        assert outcome(resumed) == outcome(alone)
        assert len(watch.known) == len(SCRIPT)  # no other weights were ever measured
        assert same_weights(resumed.objective, alone.objective)


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_neither_the_best_nor_the_way(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on disk whenever something is computed or written is what a kill leaves."""
    watch, moments = Scripted([1.0, 2.0, 1.5, 2.0]), list[Path]()

    def look() -> None:
        moments.append(tmp_path / f"moment-{len(moments)}")
        shutil.copytree(tmp_path / "run", moments[-1])

    export, save = RecordedObjective.export, torch.save

    def watched_export(self: RecordedObjective, folder: Path, target: Target) -> None:
        look()
        export(self, folder, target)

    def watched_save(state: Any, path: Path) -> None:
        look()
        save(state, path)

    watch.hook = look
    config = replace(CONFIG, measure_updates=1, patience=2, save_minutes=1e-9)  # saves every update
    with monkeypatch.context() as patch:
        patch.setattr(RecordedObjective, "export", watched_export)
        patch.setattr(torch, "save", watched_save)
        alone = trainer_of(target, tmp_path / "run", watch, config)
        alone.run()
    watch.hook = lambda: None
    assert alone.progress.updates == 3 and len(moments) > 20
    for moment in moments:
        resumed = trainer_of(target, moment, watch, config)
        if resumed.progress.best_updates is not None:
            kept = watch.value_of(resumed.checkpoint)
            assert kept is not None and kept >= resumed.progress.best_value
        resumed.run()
        assert outcome(resumed) == outcome(alone)
        assert same_weights(resumed.objective, alone.objective)


@pytest.mark.parametrize("script", [SCRIPT, [1.0 + i for i in range(11)]])
def test_a_run_that_stopped_or_finished_does_not_go_on(
    target: Target, tmp_path: Path, script: list[float]
) -> None:
    watch = Scripted(script)
    first = trainer_of(target, tmp_path, watch)
    first.run()
    assert first.progress.updates == (12 if script is SCRIPT else 20)
    before, calls = outcome(first), watch.calls
    never = stopping_after(objective_of("eagle3", target), 0, AssertionError("went on"))
    again = trainer_of(target, tmp_path, watch, objective=never)
    again.run()
    assert outcome(again) == before
    assert watch.calls == calls


def test_more_patience_or_budget_takes_a_run_further(target: Target, tmp_path: Path) -> None:
    watch = Scripted([2.0, 1.0, 1.0, 3.0, 1.0, 4.0])
    for changes, updates, best in [
        ({"patience": 2}, 4, 2.0),
        ({"patience": 3, "updates": 8}, 8, 3.0),
        ({"patience": 3, "updates": 10}, 10, 4.0),
    ]:
        trainer = trainer_of(target, tmp_path, watch, replace(CONFIG, **changes))
        assert trainer.run().updates == updates
        assert watch.value_of(trainer.checkpoint) == best


def test_a_run_from_before_there_was_a_watch_goes_on(target: Target, tmp_path: Path) -> None:
    trainer_of(target, tmp_path, None).save()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    kept = ("updates", "seconds", "response_tokens", "tera_flops", "history")
    state["progress"] = {name: state["progress"][name] for name in kept}
    torch.save(state, tmp_path / "state.pt")
    assert trainer_of(target, tmp_path, Scripted(SCRIPT)).run().best_updates == 6


def test_the_command_trains_in_updates_and_its_card_tells_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = Eagle3Args(
        corpus=write_texts(tmp_path / "c.parquet", 257),
        run=tmp_path / "run",
        target=str(save_target(tmp_path / "target")),
        dtype="float32",
        threads=1,
        drafter=Eagle3Settings(draft_vocab=64, steps=2, frequent=8, others=8),
        trainer=TrainerConfig(updates=4, measure_updates=2),
    )
    checkpoint = train(args)
    announced = "training for 4 updates; measuring (at the start, every 2 updates, at the end)"
    assert announced in capsys.readouterr().out
    lines = (args.run / "metrics.jsonl").read_text().splitlines()
    best = [entry for entry in map(json.loads, lines) if "best_updates" in entry]
    assert [entry["updates"] for entry in best] == [0, 2, 4]
    text = (checkpoint / "README.md").read_text()
    chosen = best[-1]["best_updates"]
    which = f"update {chosen} of 4" if chosen else "those it started from of 4"
    assert which in text
    assert f"{best[-1]['best_acceptance_length']:.3f}" in text
    assert "tree_acceptance_length" in text
    assert "| objective | plain: decay 0.8, labels soft |" in text
    assert "| init | fresh weights |" in text
    assert load_folder(checkpoint, load_target(args.target, "float32", 1)).name == "eagle3"


def objective_told(args: Eagle3Args, run: Path) -> str:
    """The line about the objective in the card of a run that has just begun."""
    target = {"target": "t", "fingerprint": "f", "dtype": "float32", "threads": 1}
    body = {"settings": plain(asdict(args)), **target, **describe_host()}
    (run / "config.json").write_text(json.dumps(body))
    (run / "metrics.jsonl").write_text("")
    return next(line for line in card(run).splitlines() if line.startswith("| objective"))


def test_a_card_tells_the_objective_with_its_terms_and_where_it_began(tmp_path: Path) -> None:
    args = Eagle3Args(
        corpus=Path("texts"),
        objective="vsd",
        init=Path("/home/somebody/eagle3-before"),
        terms=ObjectiveSettings(LossSettings(decay=0.7), VSDSettings(paths=3, anchor=0.5)),
    )
    told = objective_told(args, tmp_path)
    assert told.startswith("| objective | vsd: ")
    for name, value in asdict(args.terms.vsd).items():
        assert f"{name} {value}" in told
    assert told.endswith("its anchor: decay 0.7, labels soft |")
    assert "| init | `eagle3-before` |" in card(tmp_path)


def test_a_card_tells_which_terms_of_left_to_right_are_left_out(tmp_path: Path) -> None:
    terms = ObjectiveSettings(LossSettings(decay=0.7, focal=0.0))
    args = Eagle3Args(corpus=Path("texts"), objective="l2r", terms=terms)
    told = objective_told(args, tmp_path)
    assert told == "| objective | l2r: decay 0.7, labels soft, focal 0.0, chain 40.0 |"
