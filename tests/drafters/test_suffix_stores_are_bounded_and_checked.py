"""A store of responses has a size, belongs to a target, and is found as a count would find it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json
from draftgym.decoding.model.target import Target
from draftgym.drafters.loading import load_drafters
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.drafters.suffix.matches import MOST
from draftgym.drafters.suffix.store import END, TOKENS, ResponseStore, main, save_store
from draftgym.drafters.training.data.corpus import response_schema
from tests.drafters.test_suffix_drafts_what_followed_most_often import asked
from tests.tiny import tiny_target
from tests.tiny_text import save_target, text_target

RESPONSES = [[5, 6, 7, 8], [9, 5, 6, 10, 11], [12, 13, 14]]


def store_of(responses: Sequence[Sequence[int]], longest: int = 4) -> ResponseStore:
    tokens = [token for response in responses for token in (*response, END)]
    return ResponseStore(np.array(tokens, np.int32), longest)


def kept(folder: Path) -> list[int]:
    tokens: list[int] = load_file(folder / "model.safetensors")[TOKENS].tolist()
    return tokens


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.integers(1, 5),
)
def test_suffix_store_finds_every_occurrence_and_nothing_else(
    responses: list[list[int]], text: list[int], longest: int
) -> None:
    wanted: dict[int, list[list[int]]] = {}
    for length in range(1, min(longest, len(text)) + 1):
        rest = sorted(
            response[end:]
            for response in responses
            for end in range(length, len(response))
            if response[end - length : end] == text[len(text) - length :]
        )
        if rest == wanted.get(length - 1):
            del wanted[length - 1]  # the longer of two with the same occurrences is told
        if rest:
            wanted[length] = rest
    found = list(store_of(responses, longest).matches(text, ()))
    assert [match.length for match in found] == sorted(wanted, reverse=True)
    for match in found:
        behind = [list(match.text)[at:] for at in match.after]
        assert sorted(rest[: rest.index(END)] for rest in behind) == wanted[match.length]


def test_suffix_takes_the_better_scored_of_text_and_store() -> None:
    store = store_of([[1, 2, 3, 40, 41, 42, 43, 44, 45]])
    drafter = SuffixDrafter(store=store)
    assert asked(drafter, [9, 1, 2, 3], DraftShape(4))[0].token_ids == [40, 41, 42, 43]
    text = [1, 2, 3, 50, 51, 52, 53, 54, 55, 9, 1, 2, 3]
    assert asked(drafter, text, DraftShape(4))[0].token_ids == [50, 51, 52, 53]  # as good, and here
    unsure = [1, 2, 3, 50, 9, 1, 2, 3, 51, 9, 1, 2, 3]
    assert asked(drafter, unsure, DraftShape(9))[1] == (3, 6, 6.0)
    assert asked(SuffixDrafter(store=store, never=frozenset({41})), [1, 2, 3], DraftShape(4))[
        0
    ].token_ids == [40]


def test_suffix_store_counts_a_fair_part_of_very_many_occurrences() -> None:
    (match,) = store_of([[5, 6, 0]] * 3 * MOST + [[5, 7, 0]] * 3 * MOST).matches([5], ())
    followed = [match.text[at] for at in match.after]
    assert MOST / 2 < len(followed) <= MOST
    assert abs(followed.count(6) - followed.count(7)) <= 1


def test_suffix_store_keeps_the_newest_responses_whole(target: Target, tmp_path: Path) -> None:
    for most, expected in ((12, RESPONSES), (11, RESPONSES[1:]), (7, RESPONSES[2:])):
        folder = tmp_path / str(most)
        told = save_store(RESPONSES, folder, target, most)
        assert kept(folder) == [token for one in expected for token in (*one, END)]
        assert told["responses"] == len(expected)
        assert told["tokens"] == sum(map(len, expected)) <= most
    for responses, most in ((RESPONSES, 2), ([], 10), ([[]], 10)):
        with pytest.raises(DraftgymError, match="none is kept") as caught:
            save_store(responses, tmp_path / "empty", target, most)
        assert caught.value.remedy and not (tmp_path / "empty").exists()


def test_suffix_store_is_loaded_like_a_drafter(target: Target, tmp_path: Path) -> None:
    save_store(RESPONSES, tmp_path / "store", target, 99)
    empty = tmp_path / "nothing shipped"
    usual = load_drafters(target, shipped=empty)["suffix"]
    drafters = load_drafters(target, [tmp_path / "store"], empty)
    assert sorted(drafters) == ["ngram", "suffix"]
    assert asked(drafters["suffix"], [1, 6], DraftShape(2))[0].token_ids == [10, 11]
    assert len(asked(usual, [1, 6], DraftShape(2))[0]) == 0
    save_store(RESPONSES[:1], tmp_path / "other", target, 99)
    other = load_drafters(target, [tmp_path / "other"], empty)["suffix"]
    fingerprints = {one.fingerprint for one in (usual, other, drafters["suffix"])}
    assert len(fingerprints) == 3, "traces tell them apart"
    with pytest.raises(DraftgymError, match="two suffix"):
        load_drafters(target, [tmp_path / "store", tmp_path / "other"], empty)


def test_suffix_store_of_another_target_is_refused(target: Target, tmp_path: Path) -> None:
    save_store(RESPONSES, tmp_path, target, 99)
    with pytest.raises(DraftgymError, match="another target") as caught:
        load_drafters(tiny_target(seed=7), [tmp_path])
    assert "suffix-store" in caught.value.remedy


DAMAGE = {
    "no tensors": {},
    "another tensor": {"weights": torch.zeros(4)},
    "another dtype": {TOKENS: torch.tensor([5.0, 6.0, -1.0])},
    "another shape": {TOKENS: torch.tensor([[5, -1]], dtype=torch.int32)},
    "an unknown token": {TOKENS: torch.tensor([5, 61, -1], dtype=torch.int32)},
    "a negative token": {TOKENS: torch.tensor([5, -2, -1], dtype=torch.int32)},
    "no end": {TOKENS: torch.tensor([5, 6, 7], dtype=torch.int32)},
    "nothing": {TOKENS: torch.tensor([], dtype=torch.int32)},
}


@pytest.mark.parametrize("name", [*DAMAGE, "a cut file", "a lost file", "an empty config"])
def test_suffix_store_that_is_damaged_is_refused(target: Target, tmp_path: Path, name: str) -> None:
    save_store(RESPONSES, tmp_path, target, 99)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if name in DAMAGE:
        save_file(DAMAGE[name], weights)
    elif name == "a cut file":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif name == "a lost file":
        weights.unlink()
    else:
        config.write_text(json.dumps({"model_type": read_json(config, "-")["model_type"]}))
    with pytest.raises(DraftgymError) as caught:
        load_drafters(target, [tmp_path])
    assert caught.value.remedy


def test_suffix_store_that_breaks_off_is_none(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def stop(source: str, name: str) -> None:
        if str(name).endswith("config.json"):
            raise InterruptedError
        replace(source, name)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stop)
        with pytest.raises(InterruptedError):
            save_store(RESPONSES, tmp_path / "store", target, 99)
    with pytest.raises(DraftgymError, match="no drafter checkpoint"):
        load_drafters(target, [tmp_path / "store"])
    with pytest.raises(DraftgymError, match="exists already"):
        save_store(RESPONSES, tmp_path / "store", target, 99)


def test_suffix_store_is_made_of_a_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_target(tmp_path / "target")
    target = text_target()
    rows = {"prompt": [[1, 2]] * 3, "response": RESPONSES}
    columns = {name: pa.array(some, pa.list_(pa.int32())) for name, some in rows.items()}
    schema = response_schema({"fingerprint": target.fingerprint, "target": "tiny"})
    told = pa.table(columns).replace_schema_metadata(schema.metadata)
    pq.write_table(told, tmp_path / "responses.parquet")
    made = ["--corpus", str(tmp_path / "responses.parquet"), "--target", str(tmp_path / "target")]
    main([*made, "--out", str(tmp_path / "store"), "--tokens", "9"])
    assert "2 of 3 responses, 8 tokens" in capsys.readouterr().out
    assert kept(tmp_path / "store") == [9, 5, 6, 10, 11, END, 12, 13, 14, END]
    drafter = load_drafters(target, [tmp_path / "store"])["suffix"]
    assert asked(drafter, [9, 5], DraftShape(3))[0].token_ids == [6, 10, 11]
