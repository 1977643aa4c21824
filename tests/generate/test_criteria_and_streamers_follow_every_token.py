"""Stopping criteria end a text where `generate()` ends it; streamers get what it gives them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.transformers import generate, speculate
from tests.generate.prompts import GREEDY, PROMPT
from tests.tiny import tiny_model
from tests.tiny_text import byte_tokenizer, text_model

MODEL = tiny_model()
LOOP = speculate("ngram:4", {"ngram": NgramDrafter(shortest=1)}, "compact")


class Asked(StoppingCriteria):
    """Ends a text when it was asked often enough; remembers what it saw."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.seen: list[list[int]] = []
        self.scores: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether it was asked often enough."""
        self.seen += input_ids.tolist()
        self.scores.append(-1 if scores is None else len(scores))
        return torch.full((len(input_ids),), len(self.seen) >= self.times)


class Notes(BaseStreamer):
    """Writes down what it gets."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, value: Tensor) -> None:
        """Tokens."""
        assert value.device.type == "cpu"
        self.got.append(value.tolist())

    def end(self) -> None:
        """No more of them."""
        self.got.append("end")


def ids(loop: Any, **asked: Any) -> Any:
    asked = GREEDY | {"inputs": PROMPT} | asked
    return MODEL.generate(**asked, custom_generate=loop)


def test_a_criterion_sees_every_prefix_and_ends_the_text_in_the_middle_of_a_round() -> None:
    for times in (1, 4, 5, 6, 7):
        own, ours = Asked(times), Asked(times)
        plain = ids(None, stopping_criteria=StoppingCriteriaList([own]))
        again = ids(LOOP, stopping_criteria=StoppingCriteriaList([ours]))
        assert torch.equal(again, plain) and again.shape[1] == 12 + times
        assert ours.seen == own.seen and ours.scores == own.scores


def test_a_criterion_is_given_the_scores_that_are_kept() -> None:
    asked = {"return_dict_in_generate": True, "output_scores": True}
    own, ours = Asked(4), Asked(4)
    ids(None, stopping_criteria=StoppingCriteriaList([own]), **asked)
    ids(LOOP, stopping_criteria=StoppingCriteriaList([ours]), **asked)
    assert ours.scores == own.scores == [1, 2, 3, 4]


def test_a_length_of_the_users_own_is_the_length() -> None:
    for length in (13, 40):
        asked = {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(length)])}
        own = ids(None, **asked)
        assert torch.equal(ids(LOOP, **asked), own) and own.shape[1] == length


def test_a_stop_string_is_found_where_transformers_finds_it() -> None:
    model, tokenizer = text_model(seed=1), byte_tokenizer()
    prompt = tokenizer("ab ab ab", return_tensors="pt").input_ids
    plain = model.generate(prompt, **GREEDY)
    word = tokenizer.decode(plain[0, 20:22])
    assert word.isascii()
    own = model.generate(prompt, **GREEDY, stop_strings=word, tokenizer=tokenizer)
    assert own.shape[1] < plain.shape[1]
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, word)])
    ours = model.generate(prompt, **GREEDY, stopping_criteria=criteria, custom_generate=LOOP)
    assert torch.equal(ours, own)
    words = {"stop_strings": word, "tokenizer": tokenizer}
    assert torch.equal(generate(model, inputs=prompt, backend="compact", **GREEDY, **words), own)


def test_a_streamer_gets_the_prompt_every_token_and_the_end() -> None:
    own, ours = Notes(), Notes()
    ids(None, streamer=own)
    ids(LOOP, streamer=ours)
    assert ours.got == own.got and own.got[-1] == "end"


def test_a_loop_within_a_users_own_function_streams_too() -> None:
    own, ours = Notes(), Notes()
    ids(None, streamer=own)

    def wrapped(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        return LOOP(model, input_ids, **rest)

    ids(wrapped, streamer=ours)
    assert ours.got == own.got


def test_an_iterator_over_the_text_ends() -> None:
    model, tokenizer = text_model(), byte_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    prompt = tokenizer("ab ab ab", return_tensors="pt").input_ids
    text = model.generate(prompt, **GREEDY, streamer=streamer, custom_generate=LOOP)
    assert "".join(streamer) == tokenizer.decode(text[0, 8:])
