"""Promise: however a target's modules are divided, it is the same target, and writes its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.generic.decoder import GenericDecoder
from draftgym.decoding.model.target import Target, load_target
from draftgym.decoding.provenance import describe_target
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.drafters.training.data.features import FeatureCache
from draftgym.policies.routers.rules import FixedPolicy
from draftgym.transformers import speculate
from tests.architectures import architecture
from tests.feature_context import random_texts
from tests.tiny import tiny_dflash, tiny_eagle3, tiny_model

PROMPT = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 31, 5, 9, 14])
NEW = 8


def divided(model: Any, *places: str) -> dict[str, str]:
    """A map of all modules that puts the layers into these places by turns."""
    body = model.base_model_prefix
    found = {name: "cpu" for name, _ in model.named_children() if name != body}
    for name, part in model.base_model.named_children():
        if isinstance(part, torch.nn.ModuleList):
            turns = {f"{body}.{name}.{i}": places[i % len(places)] for i in range(len(part))}
            found |= turns
        else:
            found[f"{body}.{name}"] = "cpu"
    return found


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def generated(model: Any) -> list[int]:
    with torch.no_grad():
        text = model.generate(PROMPT[None], max_new_tokens=NEW, do_sample=False)
    tokens: list[int] = text[0, len(PROMPT) :].tolist()
    return tokens


def check_texts(target: Target, drafters: dict[str, Drafter], text: list[int]) -> None:
    trees = target.decoder.draws_trees
    for arm in ("ngram:4", "eagle3:3x6" if trees else "eagle3:3", "dflash:4x8"):
        if arm.partition(":")[0] in drafters:
            decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm(arm)))
            assert decoder.generate(PROMPT, NEW).tokens == text, arm


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe", "lfm2"])
def test_texts_are_those_of_generate(kind: str, tmp_path: Path) -> None:
    """With layers that stay on disk, as of experts whose stored form is another."""
    model = architecture(kind)
    places = divided(model, "cpu", "disk")
    target = load_target(saved(model, tmp_path), "float32", 1, places)
    assert target.precision.spread == "layers: 2 on cpu, 1 fetched to cpu at every pass"
    head = tiny_eagle3(target, tap_layers=(0, 1, 2))
    check_texts(target, {"eagle3": head, "ngram": NgramDrafter(shortest=1)}, generated(model))


def test_embedding_and_head_may_stay_on_disk(tmp_path: Path) -> None:
    """Drafters that read them get copies."""
    model = tiny_model()
    places = divided(model, "disk") | {"lm_head": "disk", "model.embed_tokens": "disk"}
    target = load_target(saved(model, tmp_path), "float32", 1, places)
    check_texts(target, {"dflash": tiny_dflash(target)}, generated(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_is_the_same_target(kind: str, dtype: str, tmp_path: Path) -> None:
    """Drafters, traces and features fit; the trial in float32 leaves no weight wide."""
    model = architecture(kind)
    folder = saved(model, tmp_path)
    whole = load_target(folder, dtype, 1)
    target = load_target(folder, dtype, 1, divided(model, "disk", "cpu"))
    assert isinstance(target.decoder, GenericDecoder)
    assert target.fingerprint == whole.fingerprint
    weights = target.decoder.parts.model.parameters()
    assert {str(one.dtype) for one in weights} == {f"torch.{dtype}"}
    assert describe_target(target)["spread"] == target.precision.spread != ""


def test_stored_features_need_no_layer_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a drafter learns from a target that does not fit, once its states are stored."""
    model = tiny_model()
    folder, texts = saved(model, tmp_path / "target"), random_texts([(5, 9), (3, 7)], 61)
    whole = load_target(folder, "float32", 1)
    before = FeatureCache(tmp_path / "features", whole, [1, 4]).batch(texts, (1, 4))
    target = load_target(folder, "float32", 1, divided(model, "disk"))
    monkeypatch.setattr(GenericDecoder, "forward", None)  # no pass runs
    after = FeatureCache(tmp_path / "features", target, [1, 4]).batch(texts, (1, 4))
    assert torch.equal(after.taps, before.taps) and torch.equal(after.hidden, before.hidden)
    rows = torch.tensor([3, 40])
    scores = target.decoder.logits(after.hidden[0], rows)
    torch.testing.assert_close(scores, whole.decoder.logits(after.hidden[0], rows))


def test_generate_of_a_divided_model_may_speculate(tmp_path: Path) -> None:
    model = tiny_model()
    text, folder = generated(model), saved(model, tmp_path)
    places = divided(model, "cpu", "disk")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map=places)
    loop = speculate("ngram:4")
    found = model.generate(PROMPT[None], max_new_tokens=NEW, do_sample=False, custom_generate=loop)
    assert found[0, len(PROMPT) :].tolist() == text


def test_a_map_may_lie_in_a_file(tmp_path: Path) -> None:
    model = architecture("llama")
    folder, path = saved(model, tmp_path), tmp_path / "places.json"
    path.write_text(json.dumps(divided(model, "cpu", "disk")))
    assert load_target(folder, "float32", 1, str(path)).precision.spread


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"places": {}}, "empty"),
        ({"places": {"model": 1.5}}, r"puts 'model' on 1\.5"),
        ({"places": {"model.layers": "disk"}}, "device_map"),
        ({"places": {"model": "cuda:99", "lm_head": "cpu"}}, "cuda:99"),
        ({"backend": "compact"}, "several devices"),
        ({"form": ":int8"}, "several devices"),
    ],
)
def test_what_cannot_be_is_refused(told: dict[str, Any], what: str, tmp_path: Path) -> None:
    model = architecture("llama")
    name = saved(model, tmp_path) + told.get("form", "")
    places = told.get("places", divided(model, "cpu", "disk"))
    with pytest.raises(DraftgymError, match=what):
        load_target(name, "float32", 1, places, told.get("backend", "auto"))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is there")
def test_without_accelerators_nothing_is_balanced() -> None:
    with pytest.raises(DraftgymError, match="finds none") as caught:
        load_target("smollm2-135m", device="balanced")
    assert ".json" in caught.value.remedy
