"""A corpus is read as it was written, dealt out by its seed alone, or refused with a remedy."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.corpus import Corpus, load_corpus
from tests.drafters.training.setups import corpus_of, write_texts


def first_batches(corpus: Corpus, count: int, **options: Any) -> list[list[list[int]]]:
    batches = itertools.islice(corpus.batches(2, **options), count)
    return [[text.tokens.tolist() for text in batch] for batch in batches]


def test_batches_depend_on_the_seed_alone(target: Target) -> None:
    corpus = corpus_of(target)
    once = first_batches(corpus, 12, seed=1)
    torch.manual_seed(99)
    assert first_batches(corpus, 12, seed=1) == once
    assert first_batches(corpus, 12, seed=2) != once


@pytest.mark.parametrize("skip", [1, 4, 9])
def test_skipping_batches_goes_on_where_they_end(target: Target, skip: int) -> None:
    """Four batches are an epoch here, so that skipping crosses its border."""
    corpus = corpus_of(target)
    assert (
        first_batches(corpus, 6, seed=1, skip=skip)
        == first_batches(corpus, 15, seed=1)[skip : skip + 6]
    )


def test_an_epoch_shows_every_text_once(target: Target) -> None:
    corpus = corpus_of(target)
    for epoch in (0, 1):
        shown = first_batches(corpus, 4, seed=1, skip=4 * epoch)
        assert sorted(t for batch in shown for t in batch) == sorted(
            text.tokens.tolist() for text in corpus.train
        )


def write_corpus(path: Path, columns: dict[str, Sequence[Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


GOOD = {"prompt": [[1, 2]] * 8, "response": [[3, 4, 5, 6, i] for i in range(8)]}


def test_a_corpus_is_split_by_the_seed(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c.parquet", {**GOOD, "other": [0] * 8})
    corpus = load_corpus(path, 61, validation=3)
    assert (len(corpus.train), len(corpus.validation)) == (5, 3)
    every = [text.tokens.tolist() for text in corpus.train + corpus.validation]
    assert sorted(every) == [[1, 2, 3, 4, 5, 6, i] for i in range(8)]
    again = load_corpus(path, 61, validation=3)
    assert [t.tokens.tolist() for t in again.validation] == [
        t.tokens.tolist() for t in corpus.validation
    ]
    assert corpus.response_tokens == 25
    assert corpus.token_counts(61)[3] == 5 + sum(t.tokens[-1] == 3 for t in corpus.train)
    assert corpus.token_counts(61)[1] == sum(t.tokens[-1] == 1 for t in corpus.train)


def test_long_texts_are_cut_and_texts_without_prompt_or_response_left_out(tmp_path: Path) -> None:
    prompts = [[1, 2], [], [1] * 30, [1, 2], [7]]
    responses = [[3] * 40, [3] * 9, [3] * 9, [3, 3, 3], [8] * 4]
    path = write_corpus(tmp_path / "c.parquet", {"prompt": prompts, "response": responses})
    with pytest.raises(DraftgymError, match=r"1 of 5 texts .*one \(30 tokens\)") as refused:
        load_corpus(path, 61, max_length=20, validation=1)
    assert "--skip-long-prompts" in refused.value.remedy
    corpus = load_corpus(path, 61, max_length=20, validation=1, skip_long_prompts=True)
    assert corpus.describe() == {
        **{"train": 1, "validation": 1, "left_out_too_long": 1, "left_out_too_short": 2}
    }
    texts = sorted(text.tokens.tolist() for text in corpus.train + corpus.validation)
    assert texts == [[1, 2] + [3] * 18, [7, 8, 8, 8, 8]]


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"text": ["a"]}, "prompt"),
        ({"prompt": GOOD["prompt"]}, "response"),
        ({"prompt": ["why"] * 8, "response": ["because"] * 8}, "c.parquet"),
        ({"prompt": [None] * 8, "response": GOOD["response"]}, "c.parquet"),
        ({**GOOD, "response": [[3, 4, 5, 61]] * 8}, "61"),
        ({**GOOD, "response": [[3, 4, 5, -1]] * 8}, "-1"),
        ({"prompt": [[1]] * 3, "response": [[3, 4, 5, 6]] * 3}, "3 usable texts"),
        ({"prompt": [[1]] * 8, "response": [[3]] * 8}, "0 usable texts"),
    ],
)
def test_a_corpus_of_another_shape_is_refused(
    tmp_path: Path, columns: dict[str, Sequence[Any]], word: str
) -> None:
    path = write_corpus(tmp_path / "c.parquet", columns)
    with pytest.raises(DraftgymError, match=r"c\.parquet") as caught:
        load_corpus(path, 61, validation=3)
    assert word in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("content", [None, b"", b"not parquet at all"])
def test_a_missing_or_damaged_corpus_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DraftgymError, match=r"c\.parquet") as caught:
        load_corpus(path, 61)
    assert caught.value.remedy


def test_a_corpus_knows_the_temperature_of_its_texts(tmp_path: Path) -> None:
    silent = load_corpus(write_texts(tmp_path / "a.parquet", 61), 61)
    assert {text.temperature for text in silent.train + silent.validation} == {0.0}
    path = write_texts(tmp_path / "b.parquet", 61, temperature=[0.0, 0.5, 1.0] * 20)
    for hottest, expected in [(None, {0.0: 20, 0.5: 20, 1.0: 20}), (0.5, {0.0: 20, 0.5: 20})]:
        corpus = load_corpus(path, 61, validation=5, hottest=hottest)
        assert Counter(t.temperature for t in corpus.train + corpus.validation) == expected


def test_no_question_is_both_trained_and_validated_on(tmp_path: Path) -> None:
    """At whatever temperature and in whichever turn it was answered; a greedy answer is watched."""
    names = [f"q{i % 10}{'#2' * (i // 20)}" for i in range(30)]
    columns = {
        "id": names,
        "temperature": [1.0] * 10 + [0.0] * 20,
        "prompt": [[1, 2]] * 30,
        "response": [[3, 4, 5, i] for i in range(30)],
    }
    path = write_corpus(tmp_path / "c.parquet", columns)
    corpus = load_corpus(path, 61, validation=4)
    questions = [{t.question_id[:2] for t in part} for part in (corpus.train, corpus.validation)]
    assert (len(questions[0]), len(questions[1]), questions[0] & questions[1]) == (6, 4, set())
    assert (len(corpus.train), len(corpus.validation)) == (18, 4)
    assert {text.temperature for text in corpus.validation} == {0.0}


def test_texts_to_validate_on_may_come_from_elsewhere(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c.parquet", GOOD)
    other = write_corpus(tmp_path / "o.parquet", {"prompt": [[7]], "response": [[8, 8, 8, 8]]})
    corpus = load_corpus(path, 61, validation=other)
    assert len(corpus.train) == 8
    assert [text.tokens.tolist() for text in corpus.validation] == [[7, 8, 8, 8, 8]]
    empty = write_corpus(tmp_path / "e.parquet", {"prompt": [[7]], "response": [[8]]})
    with pytest.raises(DraftgymError, match=r"e\.parquet has no usable text"):
        load_corpus(path, 61, validation=empty)
