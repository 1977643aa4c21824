"""Drafter training survives being stopped, refuses what is damaged, and learns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.unroll import DFlashUnroller
from draftgym.drafters.eagle3.unroll import Eagle3Unroller
from draftgym.drafters.loading import load_folder
from draftgym.drafters.training.data.corpus import Corpus, Text, load_corpus
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.loop import trainer
from draftgym.drafters.training.loop.progress import TrainerConfig, learning_rate
from draftgym.drafters.training.loop.trainer import Trainer
from draftgym.drafters.training.objectives.candidates import CandidateSampler
from draftgym.drafters.training.objectives.losses import plain_loss
from draftgym.drafters.training.objectives.objective import ObjectiveOutput, RecordedObjective
from draftgym.drafters.training.objectives.small_lm import SmallLMObjective, cut_layers
from draftgym.drafters.training.objectives.vsd import VSDObjective, VSDSettings
from tests.feature_context import random_texts
from tests.tiny import tiny_dflash, tiny_eagle3, tiny_model

Objective = RecordedObjective | VSDObjective | SmallLMObjective
# The clock below makes every update last one second: this is a budget of 8 updates.
CONFIG = TrainerConfig(minutes=8 / 60, batch_size=2, save_minutes=99, measure_minutes=99)
KINDS = ["eagle3", "dflash", "vsd", "small"]
PLAIN = partial(plain_loss, decay=0.8)
HARD = partial(plain_loss, decay=0.8, labels="hard")


@pytest.fixture(autouse=True)
def one_second_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that an update reads twice, one second apart; the learning rate follows it."""
    ticks = itertools.count()
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: float(next(ticks)))


def objective_of(kind: str, target: Target) -> Objective:
    if kind == "eagle3":
        eagle3 = tiny_eagle3(target).network.requires_grad_(True)
        return RecordedObjective(Eagle3Unroller(eagle3, target, steps=3), PLAIN)
    if kind == "small":  # the fixture's target is this model
        sampler = CandidateSampler(target.vocab_size, torch.arange(20), 9)
        return SmallLMObjective(cut_layers(tiny_model(), [0, 1, 5]), target, sampler)
    dflash = tiny_dflash(target).network.requires_grad_(True)
    unroller = DFlashUnroller(dflash, target)
    if kind == "vsd":
        return VSDObjective(unroller, target, HARD, VSDSettings(paths=2, anchors=3), 4)
    return RecordedObjective(unroller, HARD, anchors=4)  # fewer than there are: draws matter


def corpus_of(target: Target, seed: int = 0) -> Corpus:
    sizes = [(3, 6 + i) for i in range(9)]
    texts = random_texts(sizes, target.vocab_size, seed)
    return Corpus(texts[2:], texts[:2])


def weights_of(objective: Objective) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in objective.network.state_dict().items()}


def stopping_after(objective: Objective, calls: int, error: BaseException) -> Objective:
    """The objective, raising `error` when called once too often."""
    done = itertools.count()
    original = type(objective).__call__

    class Stopping(type(objective)):  # type: ignore[misc]
        def __call__(self, batch: FeatureBatch, seed: int = 0) -> ObjectiveOutput:
            if next(done) == calls:
                raise error
            return original(self, batch, seed)

    objective.__class__ = Stopping
    return objective


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stops", [[3], [1, 2, 2]])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_ends(
    target: Target, tmp_path: Path, kind: str, stops: list[int]
) -> None:
    whole = objective_of(kind, target)
    progress = Trainer(whole, target, corpus_of(target), tmp_path / "whole", CONFIG).run()
    assert (progress.updates, progress.seconds) == (8, 8.0)
    done = 0
    for calls in stops:
        part = stopping_after(objective_of(kind, target), calls, KeyboardInterrupt())
        session = Trainer(part, target, corpus_of(target), tmp_path / "parts", CONFIG)
        with pytest.raises(KeyboardInterrupt):
            session.run()
        done += calls
        assert session.progress.updates == done
    last = objective_of(kind, target)
    resumed = Trainer(last, target, corpus_of(target), tmp_path / "parts", CONFIG)
    assert resumed.progress.updates == done
    assert resumed.run().updates == 8
    expected = weights_of(whole)
    for name, value in weights_of(last).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert resumed.progress.history == progress.history
    assert resumed.progress.response_tokens == progress.response_tokens


@pytest.mark.parametrize("calls", [1, 2, 4, 5])
def test_a_run_measures_when_it_would_have_without_an_interruption(
    target: Target, tmp_path: Path, calls: int
) -> None:
    """Every three minutes, counted from the measurement before, whatever session it was in."""
    config = replace(CONFIG, measure_minutes=3 / 60)
    part = stopping_after(objective_of("eagle3", target), calls, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Trainer(part, target, corpus_of(target), tmp_path, config).run()
    last = Trainer(objective_of("eagle3", target), target, corpus_of(target), tmp_path, config)
    assert [entry["updates"] for entry in last.run().history] == [3, 6, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_does_not_go_on(target: Target, tmp_path: Path, kind: str) -> None:
    first = objective_of(kind, target)
    Trainer(first, target, corpus_of(target), tmp_path, CONFIG).run()
    second = objective_of(kind, target)
    assert Trainer(second, target, corpus_of(target), tmp_path, CONFIG).run().updates == 8
    after = weights_of(second)
    assert all(torch.equal(value, after[name]) for name, value in weights_of(first).items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_on_a_corpus_small_enough_to_remember(
    target: Target, tmp_path: Path, kind: str
) -> None:
    """The texts are the target's own, so that a drafter can learn them."""
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    texts = []
    for prompt in random_texts([(4, 0)] * 4, target.vocab_size, seed=5):
        response = plain.generate(prompt.tokens, 16).tokens
        texts.append(Text(torch.cat([prompt.tokens, torch.tensor(response)]), 4))
    objective = objective_of(kind, target)
    config = TrainerConfig(minutes=1, batch_size=4, lr=5e-3, save_minutes=99, measure_minutes=0.2)
    history = Trainer(objective, target, Corpus(texts, texts), tmp_path, config).run().history
    losses = [entry["loss"] for entry in history]
    assert len(losses) >= 4
    if kind == "dflash":  # the other losses are soft and end at the teacher's entropy
        assert losses[-1] < losses[0] / 2
    assert losses[-1] < losses[0]
    assert history[-1]["agreement_1"] > history[0]["agreement_1"]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == len(history)


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_folder_holds_a_drafter_that_loads(
    target: Target, tmp_path: Path, kind: str
) -> None:
    trainer = Trainer(objective_of(kind, target), target, corpus_of(target), tmp_path, CONFIG)
    trainer.run()
    drafter = load_folder(trainer.checkpoint, target)
    fits = None if kind == "small" else target.fingerprint  # a whole LM serves any target
    assert (drafter.name, drafter.needs_target) == ("dflash" if kind == "vsd" else kind, fits)


def spoil_loss(output: ObjectiveOutput) -> ObjectiveOutput:
    return ObjectiveOutput(output.loss * float("nan"), output.agreement)


def spoil_gradient(output: ObjectiveOutput) -> ObjectiveOutput:
    """A finite loss whose gradient is not: sqrt at zero."""
    return ObjectiveOutput(output.loss + (output.loss * 0).sqrt(), output.agreement)


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_stop_training_before_they_reach_the_weights(
    target: Target,
    tmp_path: Path,
    kind: str,
    spoil: Callable[[ObjectiveOutput], ObjectiveOutput],
) -> None:
    objective = objective_of(kind, target)
    calls, original = itertools.count(), type(objective).__call__
    good: dict[str, Tensor] = {}

    class Spoiled(type(objective)):  # type: ignore[misc]
        def __call__(self, batch: FeatureBatch, seed: int = 0) -> ObjectiveOutput:
            output = original(self, batch, seed)
            if next(calls) < 4:
                return output
            good.update(weights_of(self))
            return spoil(output)

    objective.__class__ = Spoiled
    with pytest.raises(DraftgymError, match=r"nan|inf") as caught:
        Trainer(objective, target, corpus_of(target), tmp_path, CONFIG).run()
    assert "4 updates" in caught.value.problem
    assert str(tmp_path) in caught.value.remedy
    assert "lr" in caught.value.remedy
    kept = objective_of(kind, target)
    resumed = Trainer(kept, target, corpus_of(target), tmp_path, CONFIG)
    assert resumed.progress.updates == 4
    assert all(torch.equal(value, good[name]) for name, value in weights_of(kept).items())
    assert load_folder(resumed.checkpoint, target)


@pytest.mark.parametrize("damage", ["empty", "short", "text", "other kind", "no progress"])
def test_a_damaged_state_is_refused(target: Target, tmp_path: Path, damage: str) -> None:
    Trainer(objective_of("eagle3", target), target, corpus_of(target), tmp_path, CONFIG).save()
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    if damage == "no progress":
        state: dict[str, Any] = torch.load(path)
        torch.save({**state, "progress": {"strange": 1}}, path)
    elif damage != "other kind":
        path.write_bytes({"empty": b"", "short": whole[:-999], "text": b"hello"}[damage])
    kind = "dflash" if damage == "other kind" else "eagle3"
    with pytest.raises(DraftgymError) as caught:
        Trainer(objective_of(kind, target), target, corpus_of(target), tmp_path, CONFIG)
    assert str(path) in caught.value.problem
    assert "--run" in caught.value.remedy


def test_the_learning_rate_rises_then_falls() -> None:
    config = TrainerConfig(lr=1.0, warmup=0.1)
    rates = [learning_rate(config, spent / 100) for spent in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.05)


def first_batches(corpus: Corpus, count: int, **options: Any) -> list[list[list[int]]]:
    batches = itertools.islice(corpus.batches(2, **options), count)
    return [[text.tokens.tolist() for text in batch] for batch in batches]


def test_batches_depend_on_the_seed_alone(target: Target) -> None:
    corpus = corpus_of(target)
    once = first_batches(corpus, 12, seed=1)
    torch.manual_seed(99)
    assert first_batches(corpus, 12, seed=1) == once
    assert first_batches(corpus, 12, seed=2) != once


@pytest.mark.parametrize("skip", [1, 4, 9])
def test_skipping_batches_goes_on_where_they_end(target: Target, skip: int) -> None:
    """Four batches are an epoch here, so that skipping crosses its border."""
    corpus = corpus_of(target)
    assert (
        first_batches(corpus, 6, seed=1, skip=skip)
        == first_batches(corpus, 15, seed=1)[skip : skip + 6]
    )


def test_an_epoch_shows_every_text_once(target: Target) -> None:
    corpus = corpus_of(target)
    for epoch in (0, 1):
        shown = first_batches(corpus, 4, seed=1, skip=4 * epoch)
        assert sorted(t for batch in shown for t in batch) == sorted(
            text.tokens.tolist() for text in corpus.train
        )


def write_corpus(path: Path, columns: dict[str, Sequence[Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


GOOD = {"prompt": [[1, 2]] * 8, "response": [[3, 4, 5, 6, i] for i in range(8)]}


def test_a_corpus_is_split_by_the_seed(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c.parquet", {**GOOD, "other": [0] * 8})
    corpus = load_corpus(path, 61, validation=3)
    assert (len(corpus.train), len(corpus.validation)) == (5, 3)
    every = [text.tokens.tolist() for text in corpus.train + corpus.validation]
    assert sorted(every) == [[1, 2, 3, 4, 5, 6, i] for i in range(8)]
    again = load_corpus(path, 61, validation=3)
    assert [t.tokens.tolist() for t in again.validation] == [
        t.tokens.tolist() for t in corpus.validation
    ]
    assert corpus.response_tokens == 25
    assert corpus.token_counts(61)[3] == 5 + sum(t.tokens[-1] == 3 for t in corpus.train)
    assert corpus.token_counts(61)[1] == sum(t.tokens[-1] == 1 for t in corpus.train)


def test_long_texts_are_cut_and_texts_without_prompt_or_response_left_out(tmp_path: Path) -> None:
    prompts = [[1, 2], [], [1] * 30, [1, 2], [7]]
    responses = [[3] * 40, [3] * 9, [3] * 9, [3, 3, 3], [8] * 4]
    path = write_corpus(tmp_path / "c.parquet", {"prompt": prompts, "response": responses})
    corpus = load_corpus(path, 61, max_length=20, validation=1)
    texts = sorted(text.tokens.tolist() for text in corpus.train + corpus.validation)
    assert texts == [[1, 2] + [3] * 18, [7, 8, 8, 8, 8]]


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"text": ["a"]}, "prompt"),
        ({"prompt": GOOD["prompt"]}, "response"),
        ({"prompt": ["why"] * 8, "response": ["because"] * 8}, "c.parquet"),
        ({"prompt": [None] * 8, "response": GOOD["response"]}, "c.parquet"),
        ({**GOOD, "response": [[3, 4, 5, 61]] * 8}, "61"),
        ({**GOOD, "response": [[3, 4, 5, -1]] * 8}, "-1"),
        ({"prompt": [[1]] * 3, "response": [[3, 4, 5, 6]] * 3}, "3 usable texts"),
        ({"prompt": [[1]] * 8, "response": [[3]] * 8}, "0 usable texts"),
    ],
)
def test_a_corpus_of_another_shape_is_refused(
    tmp_path: Path, columns: dict[str, Sequence[Any]], word: str
) -> None:
    path = write_corpus(tmp_path / "c.parquet", columns)
    with pytest.raises(DraftgymError, match=r"c\.parquet") as caught:
        load_corpus(path, 61, validation=3)
    assert word in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("content", [None, b"", b"not parquet at all"])
def test_a_missing_or_damaged_corpus_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DraftgymError, match=r"c\.parquet") as caught:
        load_corpus(path, 61)
    assert caught.value.remedy
