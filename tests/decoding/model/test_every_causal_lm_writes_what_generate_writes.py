"""Whatever transformers calls a causal LM: our texts are those of its `generate()`."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.generic import decoder as generic_decoder
from draftgym.decoding.model.generic.anatomy import dissect
from draftgym.decoding.model.generic.check import check_drives
from draftgym.decoding.model.generic.decoder import GenericDecoder
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target, load_target, wrap_model
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.policies.routers.rules import FixedPolicy
from tests.architectures import ARCHITECTURES, CHAINS, COMPACT, TREES, architecture
from tests.tiny import ONE_THREAD, tiny_eagle3, tiny_model, tiny_target

PROMPT = torch.tensor([5, 9, 14, 7, 5, 9, 14, 22, 31, 5, 9, 14])
NEW = 14
PAGE = Path(__file__).resolve().parents[3] / "docs" / "targets.md"


@cache
def written(name: str) -> tuple[Any, list[int]]:
    """A model and what its `generate()` writes."""
    model = architecture(name)
    with torch.no_grad():
        text = model.generate(PROMPT[None], max_new_tokens=NEW, do_sample=False)
    return model, text[0, len(PROMPT) :].tolist()


@cache
def target_of(name: str, backend: Backend = "auto") -> tuple[Target, str]:
    """The model as a target, and what was noted about it."""
    with contextlib.redirect_stderr(io.StringIO()) as notes:
        target = wrap_model(written(name)[0], None, name, ONE_THREAD, backend=backend)
    return target, notes.getvalue()


def kind_of(target: Target) -> str:
    """How a target runs, in the words of the table."""
    if isinstance(target.decoder, Decoder):
        return COMPACT
    return TREES if target.decoder.draws_trees else CHAINS


def check_texts(name: str, target: Target) -> None:
    head = tiny_eagle3(target, tap_layers=(0, 1, 2))
    drafters: dict[str, Drafter] = {"eagle3": head, "ngram": NgramDrafter(shortest=1)}
    arms = ["plain", "ngram:4", "eagle3:3"]
    arms += ["eagle3:3x6"] if target.decoder.draws_trees else []
    for arm in arms:
        decoder = SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm(arm)))
        assert decoder.generate(PROMPT, NEW).tokens == written(name)[1], arm


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_text_is_that_of_generate(name: str) -> None:
    check_texts(name, target_of(name)[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_hidden_states_are_those_of_the_pass(name: str) -> None:
    """With what a model does to them; gradients of a student reach its hidden states."""
    decoder = target_of(name, "transformers")[0].decoder
    out = decoder.forward([NewRows(decoder.new_cache(len(PROMPT)), PROMPT)])[0]
    rows = torch.tensor([40, 3, 17])
    torch.testing.assert_close(decoder.logits(out.hidden, rows), out.logits[:, rows])
    learner = out.hidden.clone().requires_grad_()
    decoder.logits(learner).square().sum().backward()  # type: ignore[no-untyped-call]
    assert learner.grad is not None and learner.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "mistral", "phi3", "granite"])
def test_transformers_pass_writes_what_the_compact_one_writes(name: str) -> None:
    target, notes = target_of(name, "transformers")
    assert kind_of(target) == TREES and not notes
    check_texts(name, target)


@pytest.mark.parametrize("name", ["gpt2", "cohere2"])
def test_prompts_run_in_parts_and_trees_as_a_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generic_decoder, "ROWS_TOGETHER", 5)  # a tree's pass has 7 rows
    check_texts(name, target_of(name)[0])


def test_there_are_at_least_25_architectures() -> None:
    assert len(set(ARCHITECTURES)) >= 25


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_a_note_says_why_transformers_drives_it(name: str) -> None:
    notes = target_of(name)[1]
    assert "transformers drives" in notes and name in notes


@pytest.mark.parametrize("kind", [COMPACT, TREES, CHAINS])
def test_the_table_of_the_docs_is_what_runs(kind: str) -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {kind} |")]
    assert len(rows) == 1
    listed = set(re.findall(r"`(\w+)`", rows[0]))
    assert listed == {name for name in ARCHITECTURES if kind_of(target_of(name)[0]) == kind}


def test_a_tree_for_a_target_of_chains_is_refused_before_it_begins() -> None:
    target = target_of("bloom")[0]
    drafters: dict[str, Drafter] = {"eagle3": tiny_eagle3(target, tap_layers=(0, 1, 2))}
    with pytest.raises(DraftgymError, match="chains") as caught:
        SpeculativeDecoder(target, drafters, FixedPolicy(parse_arm("eagle3:3x6")))
    assert "eagle3:3" in caught.value.remedy


def test_a_model_too_short_for_the_trial_writes_its_texts_and_says_so() -> None:
    short = {"n_positions": 14, "max_position_embeddings": 14}
    model = tiny_model("gpt2", **ARCHITECTURES["gpt2"] | short)
    with contextlib.redirect_stderr(io.StringIO()) as notes:
        target = wrap_model(model, None, "short", ONE_THREAD)
    assert "14 positions are too few" in notes.getvalue()
    decoder = SpeculativeDecoder(
        target, {"ngram": NgramDrafter(shortest=1)}, FixedPolicy(parse_arm("ngram:4"))
    )
    new = 14 - len(PROMPT)
    text = model.generate(PROMPT[None], max_new_tokens=new, do_sample=False)
    assert decoder.generate(PROMPT, new).tokens == text[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("name", ["gpt2", "lfm2", "mamba", "jamba"])
def test_quantised_weights_are_tried_roughly(name: str) -> None:
    """They cannot be widened. What forgets a state runs token by token all the same."""
    decoder = GenericDecoder(dissect(architecture(name), name))
    assert "quantised" in check_drives(decoder, 256, name, exact=False)
    assert not decoder.draws_trees
    assert decoder.one_by_one == (name in ("mamba", "jamba"))


def test_what_has_no_cache_or_is_no_causal_lm_is_refused(tmp_path: Path) -> None:
    transformers.T5Config(d_model=8, num_layers=1, num_heads=2, vocab_size=9).save_pretrained(
        tmp_path
    )
    with pytest.raises(DraftgymError, match="t5") as caught:
        load_target(str(tmp_path), "float32", 1)
    assert "AutoModelForCausalLM" in caught.value.remedy


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe"])
def test_a_model_is_the_same_target_whichever_pass_runs_it(name: str) -> None:
    """So drafters trained with the one are taken with the other."""
    assert target_of(name)[0].fingerprint == target_of(name, "transformers")[0].fingerprint


def test_other_weights_are_another_target_of_transformers_too() -> None:
    assert tiny_target("gpt2").fingerprint != tiny_target("gpt2", seed=1).fingerprint
