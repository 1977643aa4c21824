"""Stop strings and ids end a text at the same token whoever drafts; it ends before a string."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.text.stream import TextStream
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.policies.registry import make_policy
from tests.tiny import tiny_drafters, tiny_target
from tests.tiny_text import byte_tokenizer, text_model, text_target

PROMPT = torch.tensor([72, 105, 32, 72, 105, 32])
LENGTH = 32
SPECS = ("plain", "ngram:8", "eagle3:5", "dflash:4x8", "small:6")


@pytest.fixture(scope="module")
def target() -> Target:
    return text_target()


@pytest.fixture(scope="module")
def drafters(target: Target) -> dict[str, Drafter]:
    return tiny_drafters(target)


@pytest.fixture(scope="module")
def whole(target: Target) -> list[int]:
    """The tokens without any extra stop."""
    return SpeculativeDecoder(target, {}, PlainPolicy()).generate(PROMPT, LENGTH).tokens


def string_in(target: Target, tokens: list[int], size: int) -> str:
    """A string of so many characters from the middle of a text, all of whole characters."""
    text = target.decode(tokens)
    return next(
        text[at : at + size]
        for at in range(len(text) // 3, len(text) - size)
        if "\ufffd" not in text[at : at + size]
    )


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("spec", SPECS)
def test_a_stop_string_ends_every_policys_text_where_transformers_ends_it(
    target: Target, drafters: dict[str, Drafter], whole: list[int], spec: str, size: int
) -> None:
    stop = string_in(target, whole, size)
    stops = Stops(strings=("never in it", stop))
    decoder = SpeculativeDecoder(target, drafters, make_policy(spec, drafters, target))
    streamed: list[int] = []
    result = decoder.generate(PROMPT, LENGTH, stops=stops, on_tokens=streamed.extend)
    with torch.inference_mode():
        reference = text_model().generate(
            PROMPT[None],
            max_new_tokens=LENGTH,
            do_sample=False,
            stop_strings=[stop],
            tokenizer=byte_tokenizer(),
        )
    assert result.tokens == streamed == reference[0, len(PROMPT) :].tolist()
    assert (result.finish_reason, result.stop_reason) == ("stop", stop)
    text = target.decode(result.tokens)
    assert stop in text and stop not in target.decode(result.tokens[:-1])
    assert stops.cut(text) == text[: text.index(stop)]


@pytest.mark.parametrize("spec", SPECS)
def test_an_extra_stop_token_ends_the_text_and_is_its_last(
    target: Target, drafters: dict[str, Drafter], whole: list[int], spec: str
) -> None:
    stop = next(token for at, token in enumerate(whole) if at > 4 and token not in whole[:at])
    decoder = SpeculativeDecoder(target, drafters, make_policy(spec, drafters, target))
    result = decoder.generate(PROMPT, LENGTH, stops=Stops((stop,)))
    assert result.tokens == whole[: whole.index(stop) + 1]
    assert (result.finish_reason, result.stop_reason) == ("stop", stop)


def test_the_targets_own_end_can_be_ignored(target: Target, whole: list[int]) -> None:
    ending = replace(target, stop_tokens=frozenset({whole[5]}))
    plain = SpeculativeDecoder(ending, {}, PlainPolicy())
    assert len(plain.generate(PROMPT, LENGTH).tokens) <= 6
    endless = plain.generate(PROMPT, LENGTH, stops=Stops(ignore_eos=True))
    assert endless.tokens == whole
    assert (endless.finish_reason, endless.stop_reason) == ("length", None)
    both = plain.generate(PROMPT, LENGTH, stops=Stops((whole[5],), ignore_eos=True))
    assert both.finish_reason == "stop"


def test_a_text_that_was_rolled_back_ends_where_it_ended(target: Target, whole: list[int]) -> None:
    stop = string_in(target, whole, 2)
    session = Session(target, PROMPT, GreedyRule(), LENGTH, {}, stops=Stops(strings=(stop,)))
    session.prefill()
    from draftgym.decoding.arms import PLAIN, Arm
    from draftgym.decoding.round import play_round

    while not session.finished:
        play_round(session, Arm(PLAIN, 0))
    written = session.new_tokens
    session.roll_back(len(PROMPT) + len(written))
    assert session.finished and session.stop_reason == stop
    session.roll_back(len(PROMPT) + 2)
    assert not session.finished and session.stop_reason is None
    while not session.finished:
        play_round(session, Arm(PLAIN, 0))
    assert session.new_tokens == written


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_stream_never_shows_the_beginning_of_a_stop_string(target: Target, step: int) -> None:
    tokens = target.tokenizer("one two END three", add_special_tokens=False)["input_ids"]
    pieces: list[str] = []
    stream = TextStream(target.decode, pieces.append, Stops(strings=("END", "two EX")))
    for at in range(0, len(tokens), step):
        stream.add(tokens[at : at + step])
        assert "one two ".startswith("".join(pieces))
    stream.close()
    assert "".join(pieces) == "one two "


def test_a_stream_shows_what_only_looked_like_a_stop_string(target: Target) -> None:
    tokens = target.tokenizer("one EN", add_special_tokens=False)["input_ids"]
    pieces: list[str] = []
    stream = TextStream(target.decode, pieces.append, Stops(strings=("END",)))
    stream.add(tokens)
    assert "".join(pieces) == "one"
    stream.close()
    assert "".join(pieces) == "one EN"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_stop_string_that_ends_in_halves_of_a_character_is_never_shown(
    target: Target, step: int
) -> None:
    tokens = target.tokenizer("one two END🙂 three", add_special_tokens=False)["input_ids"]
    pieces: list[str] = []
    stream = TextStream(target.decode, pieces.append, Stops(strings=("two \U0001f680", "END🙂")))
    for at in range(0, len(tokens), step):
        stream.add(tokens[at : at + step])
        assert "one two ".startswith("".join(pieces))
    stream.close()
    assert "".join(pieces) == "one two "


@pytest.mark.parametrize(
    ("stops", "problem"),
    [({"token_ids": (10**6,)}, "stop token 1000000"), ({"strings": ("x",)}, "no tokenizer")],
)
def test_stops_that_cannot_work_are_refused(stops: dict[str, Any], problem: str) -> None:
    with pytest.raises(DraftgymError, match=problem) as caught:
        SpeculativeDecoder(tiny_target(), {}, PlainPolicy()).generate(
            torch.tensor([5]), 4, stops=Stops(**stops)
        )
    assert caught.value.remedy


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(DraftgymError, match="empty"):
        Stops(strings=("",))
