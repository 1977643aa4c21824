"""Replay trains where live rounds of the drafter are rejected, and what it keeps is bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.loading import load_folder
from draftgym.drafters.training.build import DFlashSettings, Eagle3Settings
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.data.features import FeatureCache, target_features
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.loop.trainer import Trainer
from draftgym.drafters.training.main import DFlashArgs, Eagle3Args, ObjectiveSettings, train
from draftgym.drafters.training.objectives.errors import ERROR, FOUND, START, TEXT, ErrorBuffer
from draftgym.drafters.training.objectives.losses import Scored, plain_loss
from draftgym.drafters.training.objectives.objective import Objective
from draftgym.drafters.training.objectives.replay import (
    ReplayObjective,
    ReplaySettings,
    check_replay,
)
from draftgym.policies.routers.rules import FixedPolicy
from tests.drafters.training.setups import (
    corpus_of,
    greedy_texts,
    plain,
    same_weights,
    unroller_of,
    weights_of,
    write_texts,
)
from tests.tiny_text import save_target

KINDS = ["eagle3", "dflash"]
SETTINGS = ReplaySettings(rollouts=3, every=2, size=30, texts=2)
LOSS = partial(plain_loss, decay=0.8)


def replay_of(
    kind: str, target: Target, texts: list[Text], settings: ReplaySettings = SETTINGS
) -> ReplayObjective:
    """The objective of an untrained drafter, which is wrong nearly everywhere."""
    unroller = unroller_of(kind, target)
    unroller.network.requires_grad_(True)
    return ReplayObjective(unroller, LOSS, settings, texts, FeatureCache(None, target, ()))


def hopeful(objective: ReplayObjective, target: Target, texts: list[Text], updates: int) -> None:
    """Trains the drafter on these texts, so that it is right at times."""
    learned = plain(objective.unroller)
    optimizer = torch.optim.AdamW(objective.network.parameters(), lr=5e-3)
    for _ in range(updates):
        optimizer.zero_grad()
        learned(target_features(target, texts, objective.tap_layers)).loss.backward()
        optimizer.step()


def live_errors(
    kind: str, folder: Path, target: Target, text: Text, depth: int
) -> list[tuple[int, int]]:
    """Anchor and first wrong token of each round that live decoding of the prompt rejects."""
    decoder = SpeculativeDecoder(
        target, {kind: load_folder(folder, target)}, FixedPolicy(parse_arm(f"{kind}:{depth}"))
    )
    count = len(text.tokens) - text.prompt_length
    made = decoder.generate(text.tokens[: text.prompt_length], count)
    assert made.tokens == text.tokens[text.prompt_length :].tolist()
    anchor, errors = text.prompt_length, []
    for item in made.rounds:
        record = item.record
        if record.accepted < record.depth:
            errors.append((anchor, anchor + record.accepted + 1))
        anchor += len(record.committed)
    return errors


@pytest.mark.parametrize("kind", KINDS)
def test_the_buffer_holds_exactly_the_rejections_of_live_rounds(
    kind: str, target: Target, tmp_path: Path
) -> None:
    texts = greedy_texts(target, [4, 7, 5], 24)
    objective = replay_of(kind, target, texts, replace(SETTINGS, size=999, depth=3))
    hopeful(objective, target, texts, 15)
    objective.export(tmp_path, target)
    buffer = objective.refilled(7)
    assert set(buffer.errors[:, FOUND].tolist()) == {7}
    for index, text in enumerate(texts):
        rows = buffer.errors[buffer.errors[:, TEXT] == index]
        found = [tuple(row) for row in rows[:, START : ERROR + 1].tolist()]
        assert found == live_errors(kind, tmp_path, target, text, 3)
    depths = buffer.errors[:, ERROR] - buffer.errors[:, START]
    assert depths.min() == 1 and depths.max() > 1  # some rounds accept before they fail


class AlwaysRight:
    """Drafts what the text goes on with."""

    def propose_at_each(self, text: Any, places: Any, shapes: Any) -> list[list[Proposal]]:
        """Chains."""
        return [[self._chain(text, place, shape) for shape in shapes] for place in places]

    def _chain(self, text: Any, place: Any, shape: Any) -> Proposal:
        count = min(shape.depth, place.room)
        tokens = text.tokens[place.length : place.length + count]
        return Proposal(tokens, torch.arange(count) - 1, torch.zeros(count))


@pytest.mark.parametrize("kind", KINDS)
def test_a_drafter_that_is_always_right_trains_as_plain(kind: str, target: Target) -> None:
    texts = greedy_texts(target, [4, 7], 12)
    objective = replay_of(kind, target, texts)
    objective.drafter = AlwaysRight()  # type: ignore[assignment]
    batch = target_features(target, texts, objective.tap_layers)
    output, expected = objective(batch, 1), plain(objective.unroller)(batch, 1)
    assert torch.equal(output.loss, expected.loss)
    assert output.metrics == {"errors": 0, "replayed": 0.0}
    assert objective.buffer.filled == 1  # it was asked


@pytest.mark.parametrize("where", ["error", "round"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_recorded_one_at_the_errors_mixed_by_the_share(
    kind: str, where: Any, target: Target
) -> None:
    texts = greedy_texts(target, [4, 7, 5], 14)
    settings = replace(SETTINGS, where=where, share=0.3)
    objective = replay_of(kind, target, texts, settings)
    hopeful(objective, target, texts, 8)
    batch = target_features(target, texts[:1], objective.tap_layers)
    output = objective(batch, 5)
    drawn = objective.buffer.draw(settings.texts, None, 5)
    total = torch.zeros(())
    for rows in drawn:  # text by text, without padding
        text = texts[int(rows[0, TEXT])]
        anchors = rows[:, START] if where == "round" else rows[:, ERROR] - 1
        alone = target_features(target, [text], objective.tap_layers)
        valid = torch.ones(1, len(rows), dtype=torch.bool)
        scored = objective.unroller.score_text(alone, anchors[None], valid, None)
        total = total + LOSS(scored) * len(rows)
    count = sum(map(len, drawn))
    expected = 0.7 * plain(objective.unroller)(batch).loss + 0.3 * total / count
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    assert output.metrics["replayed"] == pytest.approx(count / (count + 13))
    assert output.metrics["age"] == 0
    with torch.no_grad():
        assert torch.equal(objective(batch).loss, plain(objective.unroller)(batch).loss)


def test_at_an_error_the_first_draft_position_is_the_token_that_was_missed(target: Target) -> None:
    texts = greedy_texts(target, [4, 7], 14)
    objective = replay_of("eagle3", target, texts)
    objective.buffer = objective.refilled(1)
    drawn = objective.buffer.draw(2, None, 1)
    asked: list[tuple[Tensor, Tensor]] = []
    score = objective.unroller.score_text

    def seen(batch: Any, anchors: Tensor, valid: Tensor, seed: int | None) -> Scored:
        asked.append((batch.tokens.gather(1, anchors + 1)[valid], valid))
        return score(batch, anchors, valid, seed)

    objective.unroller.score_text = seen  # type: ignore[method-assign]
    objective.replayed(drawn, 1)
    missed = torch.cat([texts[int(rows[0, TEXT])].tokens[rows[:, ERROR]] for rows in drawn])
    assert torch.equal(asked[0][0], missed)


def test_the_buffer_is_bounded_and_the_oldest_leave_first() -> None:
    def places(count: int) -> Tensor:
        return torch.stack([torch.arange(count), torch.arange(count) + 1], 1)

    buffer = ErrorBuffer().with_texts([0, 1], [places(3), places(2)], 1, 6)
    assert len(buffer.errors) == 5
    buffer = buffer.with_texts([2], [places(3)], 4, 6)
    assert buffer.errors[:, TEXT].tolist() == [0, 1, 1, 2, 2, 2]
    assert buffer.errors[:, FOUND].tolist() == [1, 1, 1, 4, 4, 4]
    buffer = buffer.with_texts([1], [places(1)], 9, 6)  # what it said of text 1 is forgotten
    assert buffer.errors[:, [TEXT, FOUND]].tolist() == [[0, 1], [2, 4], [2, 4], [2, 4], [1, 9]]
    assert buffer.with_texts([2], [places(0)], 11, 6).found == [0, 1]
    assert (buffer.filled, ErrorBuffer().draw(2, None, 1)) == (9, [])
    drawn = {int(rows[0, TEXT]): len(rows) for rows in buffer.draw(3, 2, 3)}
    assert drawn == {0: 1, 1: 1, 2: 2}
    assert len(buffer.draw(2, None, 3)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_training_keeps_the_buffer_bounded_and_fresh(
    kind: str, target: Target, tmp_path: Path
) -> None:
    trainer = trainer_of(kind, target, tmp_path)
    seen: list[tuple[int, int]] = []
    original = ReplayObjective.refilled

    class Watched(ReplayObjective):
        def refilled(self, update: int) -> ErrorBuffer:
            buffer = original(self, update)
            seen.append((update, len(buffer.errors)))
            return buffer

    trainer.objective.__class__ = Watched
    trainer.run()
    assert [update for update, _ in seen] == [1, 3, 5, 7]
    assert max(size for _, size in seen) == SETTINGS.size


def trainer_of(kind: str, target: Target, folder: Path) -> Trainer:
    """A trainer of 8 updates with a fresh objective."""
    corpus = corpus_of(target)
    config = TrainerConfig(updates=8, batch_size=2, save_minutes=99, measure_minutes=0)
    return Trainer(replay_of(kind, target, corpus.train), target, corpus, folder, config)


def interrupted(trainer: Trainer, at: int, when: str) -> None:
    """Runs until update `at`: stops before it decodes texts, within, or when its loss is there."""
    objective: Any = trainer.objective
    original = getattr(objective, when)

    def stopping(*arguments: Any) -> Any:
        made = original(*arguments)
        if trainer.progress.updates + 1 == at:
            raise KeyboardInterrupt
        return made

    setattr(objective, when, stopping)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.progress.updates == at - 1


@pytest.fixture(scope="module")
def uncut(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Objective]:
    """The objective of a kind at the end of a run that was not cut."""

    @cache
    def ended(kind: str) -> Objective:
        whole = trainer_of(kind, target, tmp_path_factory.mktemp(kind))
        start = weights_of(whole.objective)
        whole.run()
        assert not same_weights(start, whole.objective)
        return whole.objective

    return ended


@pytest.mark.parametrize(
    ("kind", "at", "when"),
    [
        *(("dflash", *cut) for cut in [(3, "scored"), (5, "_errors"), (5, "replayed")]),
        *(("dflash", 6, "replayed"), ("eagle3", 5, "_errors"), ("eagle3", 6, "replayed")),
    ],
)
def test_a_cut_run_that_goes_on_ends_with_the_weights_of_one_that_was_not_cut(
    kind: str,
    at: int,
    when: str,
    uncut: Callable[[str], Objective],
    target: Target,
    tmp_path: Path,
) -> None:
    interrupted(trainer_of(kind, target, tmp_path), at, when)
    resumed = trainer_of(kind, target, tmp_path)
    resumed.run()
    assert same_weights(uncut(kind), resumed.objective)
    one, other = uncut(kind).state(), resumed.objective.state()
    assert torch.equal(one["errors"], other["errors"]) and one["filled"] == other["filled"]


def test_what_was_remembered_of_other_texts_is_forgotten(target: Target, tmp_path: Path) -> None:
    texts = greedy_texts(target, [4, 7], 12)
    before, after = (replay_of("eagle3", target, of) for of in (texts, texts[:1]))
    before.buffer = before.refilled(3)
    after.restore(before.state())
    assert after.buffer.filled == 0
    after.restore({})  # of an objective that remembers nothing
    assert after.buffer.filled == 0


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0.0}, {"share": 1.5}, {"every": 0}, {"size": 0}, {"rollouts": 0}, {"depth": 0}],
)
def test_settings_that_cannot_work_are_refused_with_the_option(wrong: dict[str, Any]) -> None:
    check_replay(ReplaySettings(share=1.0))
    with pytest.raises(DraftgymError) as caught:
        check_replay(replace(SETTINGS, **wrong))
    ((knob, _),) = wrong.items()
    assert f"--terms.replay.{knob}" in caught.value.problem


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_trains_with_replay_and_its_card_says_so(kind: str, tmp_path: Path) -> None:
    folder = save_target(tmp_path / "target")
    given: dict[str, Any] = {
        "corpus": write_texts(tmp_path / "texts.parquet", 257),
        "objective": "replay",
        "features": tmp_path / "features",
        "run": tmp_path / "run",
        "target": str(folder),
        "dtype": "float32",
        "threads": 1,
        "trainer": TrainerConfig(updates=10, batch_size=2, measure_minutes=0),
        "terms": ObjectiveSettings(replay=replace(SETTINGS, share=0.25)),
    }
    if kind == "eagle3":
        checkpoint = train(Eagle3Args(drafter=Eagle3Settings(steps=2), **given))
    else:
        settings = DFlashSettings(draft_vocab=40, mask_token_id=3)
        checkpoint = train(DFlashArgs(drafter=settings, **given))
    card = (checkpoint / "README.md").read_text()
    assert "| objective | replay: share 0.25, where error, depth 4, rollouts 3" in card
    assert "its loss: decay 0.8, labels soft |" in card
    told = EventAccumulator(str(tmp_path / "run"))
    told.Reload()
    names = {"errors", "replayed", "replayed_loss", "age", "accepted_before"}
    assert {f"objective/{name}" for name in names} <= set(told.Tags()["scalars"])
    assert 0 < told.Scalars("objective/replayed")[0].value < 1
