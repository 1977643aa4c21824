"""Responses about images become corpora, whose texts drafters are trained on as on any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.positions.recorded import RecordedText
from draftgym.drafters.training.build import Eagle3Settings
from draftgym.drafters.training.data.corpus import load_corpus
from draftgym.drafters.training.data.features import FeatureCache, target_features
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.main import Eagle3Args, train
from draftgym.drafters.training.objectives.paths import draw_paths, verify_paths
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.responses.respond import RespondArgs, respond
from tests.images.heads import image_head, texts_about
from tests.tiny_images import picture

LENGTH = 6


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Prompts that show one picture, or none, in one turn or two."""
    lines = []
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
        turns = ["What is it?", "Why?"] if number == 1 else ["What is it?"]
        images = [[f"{number}.png"]] if number else []
        lines.append({"question_id": str(number), "turns": turns, "images": images})
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def corpus(target: Target, prompts: Path) -> Path:
    """What the target says to them."""
    out = prompts.parent / "responses"
    respond(
        RespondArgs(out=out, prompts=str(prompts), temperatures=(0.0,), max_new_tokens=LENGTH),
        target,
    )
    return out


def test_responses_are_what_decoding_writes(target: Target, prompts: Path, corpus: Path) -> None:
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    read = load_corpus(corpus, target.vocab_size, validation=0, target=target).train
    texts = {text.question_id: text for text in read}
    assert texts.keys() == {"0", "1", "1#2", "2"}
    for prompt in load_prompts(prompts):
        text = texts[prompt.question_id]
        written = text.tokens[text.prompt_length :].tolist()
        assert written == plain.generate(prompt.messages, LENGTH).tokens
        assert bool(text.shown) == bool(prompt.images)


def test_a_corpus_moves_with_its_images(target: Target, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("responses", "1.png", "2.png"):
        shutil.move(str(tmp_path / name), tmp_path / "elsewhere" / name)
    moved = tmp_path / "elsewhere" / "responses"
    (text, *_) = [
        one for one in load_corpus(moved, target.vocab_size, validation=0).train if one.shown
    ]
    assert torch.isfinite(target_features(target, [text], (1,)).taps).all()
    (tmp_path / "elsewhere" / "1.png").unlink()
    (tmp_path / "elsewhere" / "2.png").unlink()
    with pytest.raises(DraftgymError, match="there is no image"):
        target_features(target, [text], (1,))


def test_features_are_those_of_decoding(target: Target, tmp_path: Path) -> None:
    """Stored features tell pictures apart whose tokens are the same."""
    head = image_head(target, None)
    (text, other) = texts_about(target, tmp_path, [[1], [7]], LENGTH)
    features = FeatureCache(tmp_path / "features", target, head.tap_layers, stored=torch.float32)
    prompt, inputs = target.encode_with_images(text.shown)
    session = Session(target, prompt, GreedyRule(), LENGTH, {"eagle3": head}, inputs=inputs)
    session.prefill()
    expected = session.features(head.tap_layers, 0, len(prompt))
    for _ in range(2):  # computed, then read
        both = features.batch([text, other], head.tap_layers)
        torch.testing.assert_close(both.taps[0, : len(prompt)], expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(both.taps[0, : len(prompt)], both.taps[1, : len(prompt)])


def test_a_changed_prompt_is_refused(target: Target, tmp_path: Path) -> None:
    (text,) = texts_about(target, tmp_path, [[1]], LENGTH)
    with pytest.raises(DraftgymError, match="makes of its images now"):
        target_features(target, [replace(text, tokens=text.tokens + 1)], (1,))


def test_paths_behind_images_are_verified_as_decoding_does(target: Target, tmp_path: Path) -> None:
    """The E-step of variational training scores what the target would say there."""
    head = image_head(target, 2)
    (text,) = texts_about(target, tmp_path, [[1, 2]], LENGTH)
    batch = target_features(target, [text], head.tap_layers)
    recorded = RecordedText(
        text.tokens, text.prompt_length, batch.taps[0], head.tap_layers, GreedyRule()
    )
    anchors = [text.prompt_length, text.prompt_length + 2]
    found = draw_paths(head, recorded, anchors, 1, 2, None)
    verified = verify_paths(target, text.tokens, anchors, found, text)
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    assert (
        plain.generate(list(text.shown), LENGTH).tokens
        == text.tokens[text.prompt_length :].tolist()
    )
    for row, anchor in enumerate(anchors):
        said = int(text.tokens[anchor + 1])
        for column, path in enumerate(found[row]):
            assert bool(verified.best[row, column, 0]) == (path[0] == said)


@pytest.fixture(scope="module")
def answers(targets: dict[str, Target], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one target says to enough prompts to train on, half of which show a picture."""
    folder = tmp_path_factory.mktemp("answers")
    lines = []
    for number in range(44):
        picture(number % 4).save(folder / f"{number % 4}.png")
        lines.append(
            {
                "question_id": str(number),
                "turns": [f"What is it, {number}?"],
                "images": [[f"{number % 4}.png"]] if number % 2 else [],
            }
        )
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = folder / "responses"
    how = RespondArgs(out=out, prompts=str(prompts), temperatures=(0.0,), max_new_tokens=LENGTH)
    respond(how, targets["llava"])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("queries", [None, 2])
def test_a_head_is_trained_on_them(
    folders: dict[str, Path], answers: Path, tmp_path: Path, queries: int | None
) -> None:
    """All of it as a user does it, with two objectives."""
    args = Eagle3Args(
        answers,
        tmp_path / "run",
        target=str(folders["llava"]),
        dtype="float32",
        device="cpu",
        threads=1,
        objective="vsd",
        drafter=Eagle3Settings(steps=2, image_queries=queries),
        trainer=TrainerConfig(updates=2, batch_size=2),
    )
    folder = train(args)
    assert (folder / "model.safetensors").is_file()
