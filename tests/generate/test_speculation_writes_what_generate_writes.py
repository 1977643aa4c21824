"""With `custom_generate=speculate()`, greedy ids are those of `generate()` itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from draftgym.decoding.model.backends import Backend
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.transformers import speculate
from tests.architectures import architecture
from tests.generate.prompts import GREEDY, PAD, PROMPT, padded
from tests.tiny import tiny_eagle3, tiny_model, tiny_target

NAMES = ["llama", "qwen3", "gemma3_text", "gpt2", "opt", "lfm2", "qwen3_next"]
OWN = ["llama", "qwen3", "gemma3_text"]
BACKENDS: list[tuple[str, Backend]] = [
    *((name, "compact") for name in OWN),
    *((name, "transformers") for name in NAMES),
]


@cache
def model(name: str) -> Any:
    return architecture(name)


def check(name: str, backend: Backend, given: dict[str, Any]) -> None:
    asked = GREEDY | given
    own = model(name).generate(**asked)
    loop = speculate("ngram:4", {"ngram": NgramDrafter(shortest=1)}, backend)
    assert torch.equal(model(name).generate(**asked, custom_generate=loop), own)


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_a_text_is_generates_own(name: str, backend: Backend) -> None:
    check(name, backend, {"input_ids": PROMPT})


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_padded_prompts_are_written_as_together(name: str, backend: Backend) -> None:
    check(name, backend, padded(12, 5, 9))


@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": None, "max_length": 20},
        {"max_new_tokens": 1},
        {"min_new_tokens": 9, "eos_token_id": [14, 31, 7, 22, 9, 5]},
        {"min_length": 15, "eos_token_id": list(range(4, 40))},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"bad_words_ids": [[5], [9, 14]], "forced_eos_token_id": 7},
        {"suppress_tokens": [14, 22], "begin_suppress_tokens": [9]},
        {"sequence_bias": [[[5, 9], 4.0]], "encoder_repetition_penalty": 1.2},
        {"guidance_scale": 1.5},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda given: "-".join(given),
)
def test_settings_mean_what_they_mean_to_generate(given: dict[str, Any]) -> None:
    check("llama", "compact", {"input_ids": PROMPT} | given)


def test_every_row_ends_at_its_own_end() -> None:
    prompts = padded(12, 5, 9)
    plain = model("llama").generate(**prompts, **GREEDY)
    ends = [int(plain[0, 12 + 3]), int(plain[1, 12 + 7])]
    check("llama", "compact", prompts | {"eos_token_id": ends, "pad_token_id": PAD})
    check("llama", "compact", prompts | {"eos_token_id": ends, "repetition_penalty": 1.2})


def test_several_texts_of_a_prompt_are_several_rows() -> None:
    prompts = padded(12, 5)
    loop = speculate(backend="compact")
    asked = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8}
    ids = model("llama").generate(**prompts, **asked, custom_generate=loop)
    assert ids.shape == (6, 20)
    assert torch.equal(ids[:, :12], prompts["input_ids"].repeat_interleave(3, 0))
    assert len({tuple(row) for row in ids.tolist()}) > 2


@pytest.mark.parametrize("policy", ["plain", "ngram:3", "eagle3:3", "eagle3:3x6", "random"])
def test_no_policy_changes_it(policy: str) -> None:
    target = tiny_target()
    drafters = {"eagle3": tiny_eagle3(target), "ngram": NgramDrafter(shortest=1)}
    same = tiny_model()  # of the same seed: the target's own weights
    own = same.generate(PROMPT, **GREEDY)
    loop = speculate(policy, drafters, "compact")
    assert torch.equal(same.generate(PROMPT, **GREEDY, custom_generate=loop), own)


def test_asked_for_a_dict_it_gives_generates_own() -> None:
    asked = GREEDY | {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    asked |= {"repetition_penalty": 1.2}
    own = model("llama").generate(PROMPT, **asked)
    out = model("llama").generate(PROMPT, **asked, custom_generate=speculate(backend="compact"))
    assert type(out) is type(own) and torch.equal(out.sequences, own.sequences)
    for what in ("scores", "logits"):
        assert len(out[what]) == len(own[what])
        torch.testing.assert_close(torch.stack(out[what]), torch.stack(own[what]))


def test_steps_behind_a_texts_end_are_zeros() -> None:
    prompts = padded(12, 5)
    plain = model("llama").generate(**prompts, **GREEDY)
    asked = GREEDY | {"eos_token_id": int(plain[1, 12 + 2]), "pad_token_id": PAD}
    asked |= {"return_dict_in_generate": True, "output_scores": True}
    out = model("llama").generate(**prompts, **asked, custom_generate=speculate(backend="compact"))
    scores = torch.stack(out.scores, 1)  # [b, n, vocab]
    assert out.logits is None and scores.shape[:2] == out.sequences[:, 12:].shape
    assert torch.equal(scores.abs().sum(-1) == 0, out.sequences[:, 12:] == PAD)
