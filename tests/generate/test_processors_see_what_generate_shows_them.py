"""Anybody's logits processor is asked as `generate()` asks it: per token, in order, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.transformers import speculate
from tests.generate.prompts import GREEDY, PROMPT, padded
from tests.tiny import tiny_model

MODEL = tiny_model()
LOOP = speculate("ngram:4", {"ngram": NgramDrafter(shortest=1)}, "compact")


class Counting(LogitsProcessor):
    """Remembers what it saw, and forbids by how often it was asked."""

    def __init__(self) -> None:
        self.seen: list[list[list[int]]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Other tokens each time."""
        self.seen.append(input_ids.tolist())
        scores[:, len(self.seen) % 7 :: 7] = -float("inf")  # in place, as many do
        return scores


def ids(loop: Any, **asked: Any) -> Any:
    asked = GREEDY | {"input_ids": PROMPT} | asked
    return MODEL.generate(**asked, custom_generate=loop)


def test_one_that_counts_sees_every_prefix_once() -> None:
    own, ours = Counting(), Counting()
    plain = ids(None, logits_processor=LogitsProcessorList([own]))
    assert torch.equal(ids(LOOP, logits_processor=LogitsProcessorList([ours])), plain)
    assert ours.seen == own.seen and len(ours.seen) == GREEDY["max_new_tokens"]


def test_none_is_asked_behind_the_end() -> None:
    own, ours = Counting(), Counting()
    end = int(ids(None, logits_processor=LogitsProcessorList([Counting()]))[0, 12 + 5])
    plain = ids(None, logits_processor=LogitsProcessorList([own]), eos_token_id=end)
    again = ids(LOOP, logits_processor=LogitsProcessorList([ours]), eos_token_id=end)
    assert torch.equal(again, plain) and ours.seen == own.seen


def test_drafts_are_accepted_under_them() -> None:
    """A processor that dictates what lookup finds: the model runs fewer times than tokens."""

    class Repeats(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            only = torch.full_like(scores, -float("inf"))
            return only.scatter(1, input_ids[:, -4:-3], 0.0)

    passes: list[int] = []
    model = tiny_model("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=256)
    processors = LogitsProcessorList([Repeats()])
    asked = GREEDY | {"inputs": PROMPT, "logits_processor": processors}
    own = model.generate(**asked)
    loop = speculate("ngram:4", {"ngram": NgramDrafter(shortest=1)})
    model.generate(PROMPT, **GREEDY, custom_generate=loop)  # what is made is made
    with model.transformer.h[0].register_forward_hook(lambda *_: passes.append(1)):
        ours = model.generate(**asked, custom_generate=loop)
    assert torch.equal(ours, own) and len(passes) <= 6


@pytest.mark.parametrize("given", [{}, {"repetition_penalty": 1.4}])
def test_one_that_knows_rows_by_their_place_finds_them(given: dict[str, Any]) -> None:
    def allowed(row: int, text: Tensor) -> list[int]:
        return list(range(4 + row, 60, 2 + row))

    asked = padded(12, 5, 9) | {"prefix_allowed_tokens_fn": allowed} | given
    assert torch.equal(ids(LOOP, **asked), ids(None, **asked))
