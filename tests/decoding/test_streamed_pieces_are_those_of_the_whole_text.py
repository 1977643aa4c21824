"""A stream decodes the newest tokens alone, and shows what decoding all of them would show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from draftgym.decoding.text.stops import NO_STOPS, Stops
from draftgym.decoding.text.stream import KEPT, LONGEST_WINDOW, UNFINISHED, TextStream
from tests.tiny_text import byte_tokenizer

WORDS = ["▁the", "▁sky", "▁", "s", ".", ",", "▁.", "'t", "▁n", "n't", "é", "<0x0A>"]
BYTES = [f"<0x{byte:02X}>" for byte in (0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x99, 0x82, 0xFF)]
Decode = Callable[[list[int]], str]


def word_tokenizer(cleaned: bool) -> Any:
    """Blanks belong to words, the first one is dropped, rare characters are bytes (as Llama 2)."""
    vocab = {word: index for index, word in enumerate(["<unk>", *WORDS, *BYTES])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=cleaned
    )


def pieces_of_everything(decode: Decode, stops: Stops, rounds: Sequence[list[int]]) -> list[str]:
    """What a stream shows that decodes all tokens each time."""
    tokens: list[int] = []
    pieces, shown = [], 0
    for last in [*range(len(rounds)), None]:
        tokens += [] if last is None else rounds[last]
        text = decode(tokens)
        settled = stops.cut(text)
        if last is not None:
            goes_on = settled == text
            settled = settled.rstrip().rstrip(UNFINISHED).rstrip()
            if goes_on:
                settled = settled[: len(settled) - stops.held_back(settled)].rstrip()
        pieces.append(settled[shown:])
        shown = max(shown, len(settled))
    return pieces


def pieces_of_the_newest(decode: Decode, stops: Stops, rounds: Sequence[list[int]]) -> list[str]:
    pieces: list[str] = []
    told: list[str] = []
    stream = TextStream(decode, told.append, stops)
    for tokens in rounds:
        stream.add(tokens)
        pieces.append("".join(told))
        told.clear()
    stream.close()
    return [*pieces, "".join(told)]


def rounds_of(tokens: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """The tokens, so many in each round."""
    rounds, rest = [], [*tokens]
    for turn in range(len(tokens)):
        size = sizes[turn % len(sizes)]
        rounds.append(rest[:size])
        rest = rest[size:]
    return [one for one in rounds if one]


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)
STOPS = st.sampled_from([NO_STOPS, Stops(strings=("END", "two words")), Stops(strings=("  \n",))])
BYTE_TOKENIZER = byte_tokenizer()
WORD_TOKENIZERS = {cleaned: word_tokenizer(cleaned) for cleaned in (False, True)}


@pytest.mark.slow
@given(st.text(max_size=300), SIZES, STOPS)
def test_any_text_comes_in_the_pieces_of_the_whole(
    text: str, sizes: list[int], stops: Stops
) -> None:
    tokens = BYTE_TOKENIZER(text)["input_ids"]
    rounds = rounds_of(tokens, sizes)
    decode = BYTE_TOKENIZER.decode
    whole = pieces_of_everything(decode, stops, rounds)
    assert pieces_of_the_newest(decode, stops, rounds) == whole


@given(st.integers(0, 10**6), st.integers(1, 600), SIZES)
def test_broken_bytes_come_in_the_pieces_of_the_whole(
    seed: int, count: int, sizes: list[int]
) -> None:
    tokens = torch.randint(1, 257, (count,), generator=torch.Generator().manual_seed(seed))
    rounds = rounds_of(tokens.tolist(), sizes)
    decode = BYTE_TOKENIZER.decode
    whole = pieces_of_everything(decode, NO_STOPS, rounds)
    assert pieces_of_the_newest(decode, NO_STOPS, rounds) == whole


@pytest.mark.parametrize("cleaned", [False, True])
@given(st.lists(st.integers(1, len(WORDS)), max_size=300), SIZES)
def test_words_with_blanks_come_in_the_pieces_of_the_whole(
    cleaned: bool, tokens: list[int], sizes: list[int]
) -> None:
    decode = WORD_TOKENIZERS[cleaned].decode
    rounds = rounds_of(tokens, sizes)
    whole = pieces_of_everything(decode, NO_STOPS, rounds)
    assert pieces_of_the_newest(decode, NO_STOPS, rounds) == whole


def test_a_stop_string_is_found_wherever_the_window_begins() -> None:
    for padding in range(2 * LONGEST_WINDOW):
        tokens = BYTE_TOKENIZER("x" * padding + " two words END")["input_ids"]
        stops = Stops(strings=("two words",))
        pieces = pieces_of_the_newest(BYTE_TOKENIZER.decode, stops, [[one] for one in tokens])
        assert "".join(pieces) == "x" * padding + " "


@pytest.mark.parametrize("text", ["word ", "żółć", "🙂🌳", "漢字。"])
def test_what_is_decoded_does_not_grow_with_the_text(text: str) -> None:
    longest = 0

    def decode(tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return str(BYTE_TOKENIZER.decode(tokens))

    stream = TextStream(decode, lambda piece: None)
    for token in BYTE_TOKENIZER(text * 300)["input_ids"]:
        stream.add([token])
    assert longest <= LONGEST_WINDOW + 1
    assert KEPT < LONGEST_WINDOW
