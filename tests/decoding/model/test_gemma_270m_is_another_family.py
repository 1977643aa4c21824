"""Gemma 3 270M, fetched on demand, speaks as transformers does: windows, 262k tokens, no template.

Its own terms apply (`EMBEDDED_TARGETS`), so nothing of it is shipped and nothing defaults to it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from draftgym.decoding.decoder import SpeculativeDecoder
from draftgym.decoding.model.backends import Backend
from draftgym.decoding.model.embedded import EMBEDDED_TARGETS, cache_folder
from draftgym.decoding.model.gguf.conversion import is_ready
from draftgym.decoding.model.target import load_target
from draftgym.drafters.loading import load_drafters
from draftgym.policies.registry import make_policy

NAME = "gemma3-270m"
PROMPT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is"


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Transformers' model in float32; whoever runs tests has not agreed to its terms by that."""
    spec, folder = EMBEDDED_TARGETS[NAME], cache_folder() / "targets" / NAME
    if not is_ready(folder, spec.sha256):
        fetch = f"draftgym generate --target {NAME} --prompt Hi"
        pytest.skip(f"{NAME} is not in {folder}; `{fetch}` fetches it, under {spec.terms}")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_its_terms_are_named_and_the_default_is_free() -> None:
    assert EMBEDDED_TARGETS["gemma3-270m"].terms.startswith("https://ai.google.dev/gemma")
    free = [name for name, spec in EMBEDDED_TARGETS.items() if not spec.terms]
    assert free == ["smollm2-135m"]


@pytest.mark.real_model
@pytest.mark.parametrize("backend", ["compact", "transformers"])
def test_gemma_writes_the_text_of_generate(theirs: Any, backend: Backend) -> None:
    target = load_target(NAME, "float32", backend=backend)
    drafters = load_drafters(target)
    decoder = SpeculativeDecoder(target, drafters, make_policy("ngram:8", drafters, target))
    short = target.encode(PROMPT)
    behind_the_window = torch.cat([short[:1], short[1:].repeat(530 // len(short) + 1)])
    for prompt, new_tokens in ((short, 8), (behind_the_window, 4)):
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        settings = {"attention_mask": mask, "max_new_tokens": new_tokens, "do_sample": False}
        expected = theirs.generate(prompt[None], **settings)[0, len(prompt) :].tolist()
        text = decoder.generate(prompt, new_tokens)
        assert text.tokens == expected
        assert max(one.record.accepted for one in text.rounds) > 0
        if prompt is short:
            assert "Madrid" in target.decode(text.tokens)
