"""Drafter training survives being stopped, refuses what is damaged, and learns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.loading import load_folder
from draftgym.drafters.training.data.corpus import Corpus
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.loop import trainer as trainer_module
from draftgym.drafters.training.loop.progress import TrainerConfig, learning_rate
from draftgym.drafters.training.loop.trainer import Trainer, matmul_peak
from draftgym.drafters.training.objectives.objective import ObjectiveOutput
from tests.drafters.training.setups import (
    KINDS,
    corpus_of,
    greedy_texts,
    objective_of,
    same_weights,
    stopping_after,
    weights_of,
)

# The clock below makes every update last one second: this is a budget of 8 updates.
CONFIG = TrainerConfig(minutes=8 / 60, batch_size=2, save_minutes=99, measure_minutes=99)


@pytest.fixture(autouse=True)
def one_second_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that an update reads twice, one second apart; the learning rate follows it."""
    ticks = itertools.count()
    monkeypatch.setattr(trainer_module, "clock", lambda _: float(next(ticks)))


def trainer_of(
    kind: str, target: Target, folder: Path, config: TrainerConfig = CONFIG, stop: int | None = None
) -> Trainer:
    """A trainer with a fresh objective, which is interrupted after some updates."""
    objective = objective_of(kind, target)
    if stop is not None:
        objective = stopping_after(objective, stop, KeyboardInterrupt())
    return Trainer(objective, target, corpus_of(target), folder, config)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_where_an_uninterrupted_one_ends(
    target: Target, tmp_path: Path, kind: str
) -> None:
    """And then it is over, and the run folder holds a drafter that loads."""
    whole = trainer_of(kind, target, tmp_path / "whole")
    progress = whole.run()
    assert (progress.updates, progress.seconds) == (8, 8.0)
    done = 0
    for stop in (3, 1, 2):
        session = trainer_of(kind, target, tmp_path / "parts", stop=stop)
        with pytest.raises(KeyboardInterrupt):
            session.run()
        done += stop
        assert session.progress.updates == done
    for start in (done, 8):  # the rest, then a finished run once more
        resumed = trainer_of(kind, target, tmp_path / "parts")
        assert resumed.progress.updates == start
        assert resumed.run().updates == 8
        assert same_weights(whole.objective, resumed.objective)
        assert resumed.progress.history == progress.history
        assert resumed.progress.response_tokens == progress.response_tokens
    drafter = load_folder(resumed.checkpoint, target)
    fits = None if kind == "small" else target.fingerprint  # a whole LM serves any target
    assert (drafter.name, drafter.needs_target) == ("dflash" if kind == "vsd" else kind, fits)


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
def test_a_run_measures_when_it_would_have_without_an_interruption(
    target: Target, tmp_path: Path, stop: int
) -> None:
    """Every three minutes, counted from the measurement before, whatever session it was in."""
    config = replace(CONFIG, measure_minutes=3 / 60)
    with pytest.raises(KeyboardInterrupt):
        trainer_of("eagle3", target, tmp_path, config, stop).run()
    history = trainer_of("eagle3", target, tmp_path, config).run().history
    assert [entry["updates"] for entry in history] == [3, 6, 8]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_on_a_corpus_small_enough_to_remember(
    target: Target, tmp_path: Path, kind: str
) -> None:
    """The texts are the target's own, so that a drafter can learn them."""
    texts = greedy_texts(target, [4] * 4, 16)
    objective = objective_of(kind, target)
    minutes = {"dflash": 1.0, "vsd": 0.3}.get(kind, 0.6)  # as many as it takes to learn them
    config = TrainerConfig(
        minutes=minutes, batch_size=4, lr=5e-3, save_minutes=99, measure_minutes=minutes / 5
    )
    history = Trainer(objective, target, Corpus(texts, texts), tmp_path, config).run().history
    losses = [entry["loss"] for entry in history]
    assert len(losses) >= 4
    if kind == "dflash":  # the other losses are soft and end at the teacher's entropy
        assert losses[-1] < losses[0] / 2
    assert losses[-1] < losses[0]
    assert history[-1]["agreement_1"] > history[0]["agreement_1"]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == len(history)


def spoil_loss(output: ObjectiveOutput) -> ObjectiveOutput:
    return ObjectiveOutput(output.loss * float("nan"), output.agreement)


def spoil_gradient(output: ObjectiveOutput) -> ObjectiveOutput:
    """A finite loss whose gradient is not: sqrt at zero."""
    return ObjectiveOutput(output.loss + (output.loss * 0).sqrt(), output.agreement)


@pytest.mark.parametrize(
    ("kind", "spoil"), [*((kind, spoil_loss) for kind in KINDS), ("eagle3", spoil_gradient)]
)
def test_numbers_that_are_not_finite_stop_training_before_they_reach_the_weights(
    target: Target,
    tmp_path: Path,
    kind: str,
    spoil: Callable[[ObjectiveOutput], ObjectiveOutput],
) -> None:
    trainer = trainer_of(kind, target, tmp_path)
    calls, original = itertools.count(), type(trainer.objective).__call__
    good: dict[str, Tensor] = {}

    class Spoiled(type(trainer.objective)):  # type: ignore[misc]
        def __call__(self, batch: FeatureBatch, seed: int | None = None) -> ObjectiveOutput:
            output = original(self, batch, seed)
            if next(calls) < 4:
                return output
            good.update(weights_of(self))
            return spoil(output)

    trainer.objective.__class__ = Spoiled
    with pytest.raises(DraftgymError, match=r"nan|inf") as caught:
        trainer.run()
    assert "4 updates" in caught.value.problem
    assert str(tmp_path) in caught.value.remedy
    assert "lr" in caught.value.remedy
    resumed = trainer_of(kind, target, tmp_path)
    assert resumed.progress.updates == 4
    assert same_weights(good, resumed.objective)
    assert load_folder(resumed.checkpoint, target)


@pytest.mark.parametrize("damage", ["empty", "short", "text", "other kind", "no progress"])
def test_a_damaged_state_is_refused(target: Target, tmp_path: Path, damage: str) -> None:
    trainer_of("eagle3", target, tmp_path).save()
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    if damage == "no progress":
        state: dict[str, Any] = torch.load(path)
        torch.save({**state, "progress": {"strange": 1}}, path)
    elif damage != "other kind":
        path.write_bytes({"empty": b"", "short": whole[:-999], "text": b"hello"}[damage])
    with pytest.raises(DraftgymError) as caught:
        trainer_of("dflash" if damage == "other kind" else "eagle3", target, tmp_path)
    assert str(path) in caught.value.problem
    assert "--run" in caught.value.remedy


def test_the_learning_rate_rises_then_falls() -> None:
    config = TrainerConfig(lr=1.0, warmup=0.1)
    rates = [learning_rate(config, spent / 100) for spent in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.05)


def test_the_learning_rate_follows_the_share_of_the_updates(target: Target, tmp_path: Path) -> None:
    config = replace(CONFIG, updates=6, warmup=0.3, minutes=1e-9)
    trainer = trainer_of("eagle3", target, tmp_path, config)
    rates, step = [], trainer.optimizer.step

    def watched_step(*arguments: Any) -> Any:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return step(*arguments)

    trainer.optimizer.step = watched_step  # type: ignore[method-assign]
    trainer.run()
    assert rates == [learning_rate(config, update / 6) for update in range(6)]


def test_operations_are_counted_now_and_then(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is counted stands for all: about what counting at every update gives."""
    told = []
    for every in (1, 10):
        monkeypatch.setattr(trainer_module, "COUNT_EVERY", every)
        told.append(trainer_of("eagle3", target, tmp_path / str(every)).run().tera_flops)
    assert told[1] == pytest.approx(told[0], rel=0.3) and told[0] > 1e-6
    peak = matmul_peak(torch.device("cpu"), 64, repeats=1)  # in one second
    assert peak == pytest.approx(2 * 64**3 / 1e9)
