"""A target in few bits has a name and a fingerprint; its texts are those of its rounded weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.few_bits import FORMS, few_bits, form_of, round_model
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target
from draftgym.drafters.checkpoint import load_drafter, save_checkpoint
from draftgym.drafters.loading import load_drafters
from draftgym.policies.registry import shipped_router
from draftgym.policies.routers.rules import FixedPolicy
from tests.tiny import tiny_drafters, tiny_eagle3, tiny_model
from tests.tiny_text import byte_tokenizer

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
BACKENDS = ["compact", "transformers", *(["openvino"] if HAS_OPENVINO else [])]
PROMPT = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 5, 9])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model(intermediate_size=64, vocab_size=320).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def load(folder: Path, form: str, backend: Any = "compact") -> Target:
    name = f"{folder}:{form}" if form else str(folder)
    return load_target(name, "float32", 1, "cpu", backend)


def a_weight() -> Tensor:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    weight[3], weight[4, :32] = 0.0, 0.25  # a row, and a group, without any steps
    return weight


@pytest.mark.parametrize(("form", "levels"), [("int8", 255), ("q4", 16)])
def test_weights_are_rounded_to_the_nearest_level_once(form: str, levels: int) -> None:
    weight = a_weight()
    few = few_bits(weight, form)
    off = (few.numbers - weight).unflatten(1, few.whole.shape[1:]).abs()
    assert bool((off <= few.step * 0.5001).all())
    assert all(len(group.unique()) <= levels for group in few.whole.flatten(0, 1))
    again = few_bits(few.numbers, form)
    assert torch.equal(again.whole, few.whole)
    torch.testing.assert_close(again.numbers, few.numbers, atol=1e-7, rtol=1e-6)


def test_weights_of_4_bit_files_are_kept() -> None:
    generator = torch.Generator().manual_seed(1)
    whole = torch.randint(16, (8, 3, 32), generator=generator)
    whole[..., 0], whole[..., 1] = 0, 15  # as such blocks are made
    step, lowest = (draw(8, 3, 1, generator=generator) for draw in (torch.rand, torch.randn))
    stored = (whole * step + lowest).flatten(1)
    few = few_bits(stored.bfloat16().float(), "q4")  # converted files are kept in bfloat16
    assert torch.equal(few.whole, whole.to(torch.uint8))
    torch.testing.assert_close(few.numbers, stored, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_texts_are_generates_with_the_rounded_weights(
    folder: Path, form: str, backend: str
) -> None:
    target = load(folder, form, backend)
    rounded = tiny_model(intermediate_size=64, vocab_size=320)
    round_model(rounded, form)
    wanted = rounded.generate(PROMPT[None], max_new_tokens=24, do_sample=False)[0, len(PROMPT) :]
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    assert plain.generate(PROMPT, 24).tokens == wanted.tolist()
    drafters = tiny_drafters(load(folder, form))
    for arm in ("ngram:4", "eagle3:3x7", "dflash:4"):
        policy = FixedPolicy(parse_arm(arm))
        text = SpeculativeDecoder(target, drafters, policy).generate(PROMPT, 24)
        assert text.tokens == wanted.tolist()


@pytest.mark.skipif(not HAS_OPENVINO, reason="OpenVINO is not installed")
@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_pass_reads_what_torch_computes_with(folder: Path, form: str) -> None:
    decoders = [load(folder, form, backend).compact for backend in ("openvino", "compact")]
    assert decoders[0].compiled is not None
    few = PROMPT[: decoders[0].compiled.most_rows]
    ours, torchs = (one.forward([NewRows(one.new_cache(32), few)])[0] for one in decoders)
    torch.testing.assert_close(ours.logits, torchs.logits, atol=1e-4, rtol=1e-4)


def test_it_is_another_target_which_the_drafters_of_its_own_fit(
    folder: Path, tmp_path: Path
) -> None:
    plain, int8, q4 = (load(folder, form) for form in ("", "int8", "q4"))
    assert len({plain.fingerprint, int8.fingerprint, q4.fingerprint}) == 3
    assert int8.rounded_from == q4.rounded_from == plain.fingerprint and not plain.rounded_from
    assert load(folder, "int8", "transformers").fingerprint == int8.fingerprint
    save_checkpoint(tiny_eagle3(plain).network, tmp_path / "of-plain", plain)
    save_checkpoint(tiny_eagle3(int8).network, tmp_path / "of-int8", int8)
    load_drafter(tmp_path / "of-plain", int8)
    load_drafter(tmp_path / "of-int8", int8)
    for other in (plain, q4):
        with pytest.raises(DraftgymError, match="was trained for another target"):
            load_drafter(tmp_path / "of-int8", other)


def test_names_say_the_form_and_nothing_else_is_one(folder: Path) -> None:
    assert form_of("owner/name:q4") == ("owner/name", "q4")
    assert form_of("C:/models/mine") == ("C:/models/mine", "")
    assert load(folder, "int8").name.endswith(":int8")
    with pytest.raises(DraftgymError, match="unknown target"):
        load_target(f"{folder}:int4")


def test_what_cannot_be_rounded_is_refused(tmp_path: Path) -> None:
    for name, model in {
        "narrow": tiny_model(),  # an MLP of 48 inputs
        "neox": tiny_model("gpt_neox"),
        "experts": tiny_model(
            "qwen3_moe", moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2
        ),
    }.items():
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    with pytest.raises(DraftgymError, match="groups of 32") as refused:
        load(tmp_path / "narrow", "q4")
    assert ":int8" in refused.value.remedy
    with pytest.raises(DraftgymError, match="knows no 'gpt_neox'"):
        load(tmp_path / "neox", "int8", "auto")
    with pytest.raises(DraftgymError, match="is not rounded"):
        load(tmp_path / "experts", "int8")


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize(("form", "backend"), [("int8", "compact"), ("q4", "auto")])
def test_the_embedded_target_in_few_bits_has_drafters_and_a_router(form: str, backend: Any) -> None:
    target = load_target(f"smollm2-135m:{form}", "float32", backend=backend)
    assert shipped_router(target) is not None
    drafters = load_drafters(target)
    assert {"eagle3", "dflash", "small"} <= set(drafters)
    prompt = target.encode("Name three fruits.")
    plain = SpeculativeDecoder(target, {}, PlainPolicy()).generate(prompt, 16)
    policy = FixedPolicy(parse_arm("eagle3:3x6"))
    drafted = SpeculativeDecoder(target, drafters, policy).generate(prompt, 16)
    assert drafted.tokens == plain.tokens
    assert len(drafted.rounds) < 16
