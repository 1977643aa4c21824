"""What is made of a model follows its weights, goes with it, and leaves it as it was."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch

from draftgym.decoding.model.backends import Backend
from draftgym.transformers import speculate
from tests.architectures import architecture
from tests.generate.prompts import GREEDY, PROMPT
from tests.tiny import tiny_model

BACKENDS = pytest.mark.parametrize("backend", ["compact", "transformers"])


def check(model: Any, loop: Any) -> None:
    own = model.generate(PROMPT, **GREEDY)
    assert torch.equal(model.generate(PROMPT, **GREEDY, custom_generate=loop), own)


@BACKENDS
def test_changed_weights_write_their_own_text(backend: Backend) -> None:
    model, loop = tiny_model(), speculate(backend=backend)
    check(model, loop)
    before = model.generate(PROMPT, **GREEDY)
    with torch.no_grad():
        for weight in model.model.layers[2].parameters():
            weight.mul_(-1.5)  # a step of training
    check(model, loop)
    model.load_state_dict(tiny_model(seed=5).state_dict())
    check(model, loop)
    assert not torch.equal(model.generate(PROMPT, **GREEDY), before)
    model.to(torch.bfloat16)
    model.generate(PROMPT, **GREEDY, custom_generate=loop)
    assert model._draftgym.target.precision.dtype == "bfloat16"


def test_an_unchanged_model_is_wrapped_once_for_all() -> None:
    model = tiny_model()
    for loop in (speculate(backend="compact"), speculate("plain", backend="compact")):
        check(model, loop)
        target = model._draftgym.target
    check(model, speculate(backend="compact"))
    assert model._draftgym.target is target and len(model._draftgym.decoders) == 1


@BACKENDS
def test_it_keeps_what_it_learns_and_asks_for(backend: Backend) -> None:
    model = tiny_model()
    model.model.embed_tokens.requires_grad_(False)
    model.generation_config.repetition_penalty = 1.3
    learning = [one.requires_grad for one in model.parameters()]
    keys = list(model.state_dict())
    check(model, speculate(backend=backend))
    assert [one.requires_grad for one in model.parameters()] == learning
    assert model.generation_config.repetition_penalty == 1.3
    assert list(model.state_dict()) == keys


@BACKENDS
def test_what_is_made_of_it_goes_with_it(backend: Backend) -> None:
    model, loop = tiny_model(), speculate(backend=backend)
    check(model, loop)
    target = weakref.ref(model._draftgym.target.decoder)
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None and target() is None


def test_copies_and_files_of_it_are_without() -> None:
    model, loop = architecture("gpt2"), speculate(backend="transformers")
    check(model, loop)
    twin = copy.deepcopy(model)
    assert twin._draftgym.target is None
    check(twin, loop)
    assert twin._draftgym.target is not model._draftgym.target
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    check(torch.load(file, weights_only=False), loop)


def test_adapters_may_be_switched() -> None:
    """As LoRA's are: a flag in a layer, and no other weight."""

    class Switched(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.on = inner, False

        @property
        def weight(self) -> Any:
            return self.inner.weight

        def forward(self, x: Any) -> Any:
            return self.inner(x) * (-1 if self.on else 1)

    model, loop = tiny_model(), speculate()
    layer = model.model.layers[3].self_attn
    layer.o_proj = Switched(layer.o_proj)
    model.peft_config = {}
    check(model, loop)
    before = model.generate(PROMPT, **GREEDY)
    layer.o_proj.on = True
    check(model, loop)
    assert not torch.equal(model.generate(PROMPT, **GREEDY), before)
