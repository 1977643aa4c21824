"""Two-turn questions on the embedded target: both turns are what `generate()` answers to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target, resolve_target
from draftgym.policies.registry import make_policy
from draftgym.rollouts.decode.interleaved import DecodeSettings, decode_each
from draftgym.rollouts.prompts.sets import Prompt

TOKENS = 10
QUESTIONS = [
    Prompt(
        "81",
        "writing",
        (
            "Write two sentences about a trip to Hawaii.",
            "Rewrite your answer. Start every sentence with the letter A.",
        ),
    ),
    Prompt(
        "131",
        "extraction",
        (
            "List three European capitals as a JSON array.",
            "Now write the same list in alphabetical order.",
        ),
        system="You answer as briefly as you can.",
    ),
]


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    found = transformers.AutoModelForCausalLM.from_pretrained(
        resolve_target("smollm2-135m"), dtype=torch.float32
    )
    yield found.eval()


def answers_of(model: Any, target: Target, prompt: Prompt) -> list[list[int]]:
    """Every turn by `generate()` alone, on the messages so far."""
    said = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    answers: list[list[int]] = []
    for turn in prompt.turns:
        said.append({"role": "user", "content": turn})
        inputs = target.tokenizer.apply_chat_template(
            said, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answers.append(output[0, inputs["input_ids"].shape[1] :].tolist())
        said.append({"role": "assistant", "content": target.decode(answers[-1])})
    return answers


@pytest.mark.slow
@pytest.mark.real_model
def test_both_turns_are_generates_with_the_cache_of_the_first(
    real: tuple[Target, dict[str, Drafter]], model: Any
) -> None:
    target, drafters = real
    policies = {spec: make_policy(spec, drafters, target) for spec in ("eagle3:3x6",)}
    settings = DecodeSettings(TOKENS)
    turns = decode_each(target, drafters, policies, QUESTIONS, settings, progress=False)
    known = 0
    wanted = [answers_of(model, target, one) for one in QUESTIONS]
    for answer in (answer for answers in wanted for answer in answers):
        (text,) = next(turns)
        result = text.generation
        assert result.tokens == answer, text.prompt.question_id
        # A second turn keeps all of the first, but for its last token, which had not been run yet.
        assert result.reused == (known if text.prompt.answers else 0)
        known = result.prompt_tokens + len(result.tokens) - 1
    assert next(turns, None) is None
