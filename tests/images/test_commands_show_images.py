"""Commands show real image files to a target; what cannot be shown is refused with a remedy."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from draftgym import evaluate
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.fingerprint import generic_fingerprint
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.observers.observation import RouterObserver
from draftgym.decoding.session import Session
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.loading import load_drafters
from draftgym.rollouts.decode import fitting, generation
from draftgym.rollouts.prompts.sets import load_prompts
from tests.tiny import PROMPTS, numbered_target, tiny_target
from tests.tiny_images import KINDS, picture

SHOWN = ("a.png", "b.png")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with two images and a prompt file that shows them."""
    for seed, name in enumerate(SHOWN):
        picture(seed).save(tmp_path / name)
    lines: list[dict[str, Any]] = [
        {"question_id": "one", "turns": ["What is it?", "Why?"], "images": [["a.png"], []]},
        {"question_id": "two", "turns": ["Which is it?"], "images": ["b.png", "a.png"]},
        {"question_id": "none", "turns": ["Hello!"]},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "prompts.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(folders: dict[str, Path]) -> Callable[..., None]:
    """Runs a command with the Qwen2.5-VL kind."""

    def command(main: Callable[[list[str]], None], *arguments: str) -> None:
        target = ["--target", str(folders["qwen2_5_vl"]), "--dtype", "float32", "--threads", "1"]
        main([*target, "--device", "cpu", *arguments])

    return command


def test_generate_shows_images_in_their_order(
    run: Callable[..., None],
    targets: dict[str, Target],
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = targets["qwen2_5_vl"]
    images = [str(files / name) for name in SHOWN]
    shown = [argument for image in images for argument in ("--image", image)]
    asked = ("--prompt", "What is it?", "--max-new-tokens", "12")
    run(generation.main, *asked, *shown, "--policy", "ngram:4")
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    tokens = plain.generate("What is it?", 12, images=images).tokens
    assert capsys.readouterr().out == target.decode(tokens) + "\n"
    assert plain.generate("What is it?", 12, images=images[::-1]).tokens != tokens


def test_a_chat_shows_images_with_its_first_turn(
    run: Callable[..., None],
    targets: dict[str, Target],
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (files / "turns").write_text("What is it?\nWhy?\n", encoding="utf-8")
    with (files / "turns").open() as turns:
        monkeypatch.setattr(sys, "stdin", turns)
        how = ("--chat", "--image", str(files / "a.png"), "--max-new-tokens", "6")
        run(generation.main, *how, "--policy", "ngram:4")
    told = capsys.readouterr().out
    plain = SpeculativeDecoder(targets["qwen2_5_vl"], {}, PlainPolicy())
    first = plain.generate("What is it?", 6, images=[files / "a.png"])
    assert told.startswith(targets["qwen2_5_vl"].decode(first.tokens).rstrip())


def test_evaluate_plays_prompts_with_images(
    run: Callable[..., None], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ("--prompts", str(files / "prompts.jsonl"), "--max-new-tokens", "6")
    figures = files / "figures.json"
    run(evaluate.main, *prompts, "--policies", "ngram:4", "--json", str(figures))
    assert "every text is plain decoding's" in capsys.readouterr().out
    body = json.loads(figures.read_text(encoding="utf-8"))
    assert body["differences"] == []
    assert body["environment"]["turns"] == 4


@pytest.mark.parametrize(
    ("image", "problem"),
    [("c.png", "there is no image"), ("prompts.jsonl", "no image that Pillow can read")],
)
def test_what_is_no_image_is_named_before_anything_is_loaded(
    files: Path, image: str, problem: str
) -> None:
    args = ["--target", "no/such", "--prompt", "x", "--image", str(files / image)]
    with pytest.raises(DraftgymError, match=problem):
        generation.main(args)


def test_a_target_of_text_alone_is_shown_nothing(files: Path) -> None:
    decoder = SpeculativeDecoder(tiny_target(), {}, PlainPolicy())
    with pytest.raises(DraftgymError, match="reads text alone"):
        decoder.generate("What is it?", images=[files / "a.png"])


def test_images_beside_messages_or_ids_are_refused(target: Target, files: Path) -> None:
    decoder = SpeculativeDecoder(target, {}, PlainPolicy())
    said = [{"role": "user", "content": "What is it?"}]
    with pytest.raises(DraftgymError, match="beside messages"):
        decoder.generate(said, images=[files / "a.png"])
    with pytest.raises(DraftgymError, match="beside token ids"):
        decoder.generate([1, 2, 3], images=[files / "a.png"])
    shown = [{"role": "user", "content": [{"type": "image", "image": files / "a.png"}]}]
    with pytest.raises(DraftgymError, match="token ids alone do not hold"):
        target.encode(shown)


def test_a_placeholder_in_a_text_is_no_image(target: Target) -> None:
    (token, *_) = sorted(target.image_tokens)
    text = f"What is {target.tokenizer.convert_ids_to_tokens(token)}?"
    for images in ([], [picture()]):
        with pytest.raises(DraftgymError, match="own image tokens"):
            target.encode_with_images(text, images)


def test_images_larger_than_the_context_are_refused(target: Target) -> None:
    with pytest.raises(DraftgymError, match="of them for its images, does not fit the 512"):
        target.encode_with_images("What are these?", [picture()] * 60)


def test_traces_and_corpora_refuse_images(target: Target, files: Path) -> None:
    prompts = load_prompts(files / "prompts.jsonl")
    with pytest.raises(DraftgymError, match="2 of 3 prompts have images, such as 'one'"):
        fitting.fit_prompts(target, prompts, 4)
    assert fitting.fit_prompts(target, prompts, 4, with_images=True, all_turns=True).longest
    assert fitting.fit_prompts(numbered_target(tiny_target()), PROMPTS, 4).prompts == PROMPTS


def test_a_folder_without_a_processor_serves_text(folders: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folders["llava"], bare)
    (bare / "preprocessor_config.json").unlink()
    (bare / "processor_config.json").unlink()
    target = load_target(str(bare), "float32", 1)
    assert len(target.encode("What is it?"))
    with pytest.raises(DraftgymError, match="no processor") as refused:
        target.encode_with_images("What is it?", [picture()])
    assert "preprocessor_config.json" in refused.value.remedy


def test_a_damaged_processor_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["llava"], tmp_path / "damaged")
    (tmp_path / "damaged" / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DraftgymError, match=r"the processor of target .* cannot be read"):
        load_target(str(tmp_path / "damaged"), "float32", 1)


def test_missing_pillow_is_told_with_its_remedy(
    target: Target, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DraftgymError, match="needs Pillow") as refused:
        target.encode_with_images("What is it?", [files / "a.png"])
    assert "draftgym[images]" in refused.value.remedy


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_what_sees_too(
    targets: dict[str, Target], folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    model: Any = targets[kind].decoder.parts.model  # type: ignore[attr-defined]
    assert generic_fingerprint(model) == targets[kind].fingerprint
    seeing = next(weight for name, weight in model.named_parameters() if "vis" in name)
    with torch.no_grad():
        seeing.add_(1.0)
        changed = generic_fingerprint(model)
        seeing.sub_(1.0)
    assert changed != targets[kind].fingerprint


def test_loaded_prompt_lookup_knows_the_placeholders(target: Target) -> None:
    assert target.image_tokens
    drafter: Any = load_drafters(target)["ngram"]
    assert drafter.never == target.image_tokens


def test_placeholders_are_no_repeats(target: Target) -> None:
    """A router is not told that the text repeats itself inside an image."""
    ids, inputs = target.encode_with_images("What is it?", [picture()])
    rule = make_rule(None, 0.0, 0, target.vocab_size)
    session = Session(target, ids, rule, 4, {}, inputs=inputs)
    session.prefill()
    observer = RouterObserver(PlainPolicy.arms)
    observer.observe(session)
    told = observer._repeats._tokens
    assert target.image_tokens.isdisjoint(told.tolist())
    assert (told == session.tokens.numpy()).sum() + ids_of_images(target, ids) == len(told)


def ids_of_images(target: Target, ids: torch.Tensor) -> int:
    """How many placeholders there are."""
    return sum(token in target.image_tokens for token in ids.tolist())
