"""Features that were stored are the target's, and the target is not asked twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data import features as features_module
from draftgym.drafters.training.data.corpus import Text
from draftgym.drafters.training.data.features import FeatureCache, run_target, target_features
from tests.feature_context import random_texts

SIZES = [(5, 9), (3, 14), (7, 6)]
ROUNDED = {"rtol": 1e-2, "atol": 1e-2}
"""Stored features are rounded to bfloat16."""


@pytest.fixture
def texts(target: Target) -> list[Text]:
    return random_texts(SIZES, target.vocab_size)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the target had."""
    calls: list[int] = []

    def counted(target: Target, texts: list[Text], layers: list[int]) -> object:
        calls.append(len(texts))
        return run_target(target, texts, layers)

    monkeypatch.setattr(features_module, "run_target", counted)
    return calls


def test_stored_features_are_the_targets(target: Target, texts: list[Text], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, target, [1, 2, 4])
    for _ in range(2):  # computed, then read
        got, wanted = cache.batch(texts, (4, 1)), target_features(target, texts, (4, 1))
        for name in ("tokens", "lengths", "prompt_lengths"):
            assert torch.equal(getattr(got, name), getattr(wanted, name))
        torch.testing.assert_close(got.taps, wanted.taps, **ROUNDED)
        torch.testing.assert_close(got.hidden, wanted.hidden, **ROUNDED)
        assert got.taps.dtype == target.decoder.dtype


def test_a_visit_looks_the_same_the_first_time_and_later(
    target: Target, texts: list[Text], tmp_path: Path
) -> None:
    """Otherwise a resumed run would train on other numbers than an uninterrupted one."""
    cache = FeatureCache(tmp_path, target, [1])
    first, later = cache.batch(texts, (1,)), cache.batch(texts, (1,))
    assert torch.equal(first.taps, later.taps) and torch.equal(first.hidden, later.hidden)


def test_the_target_is_asked_once_per_text(
    target: Target, texts: list[Text], tmp_path: Path, asked: list[int]
) -> None:
    FeatureCache(tmp_path, target, [1, 3]).batch(texts[:2], (1,))
    FeatureCache(tmp_path, target, [1, 3]).batch(texts, (3,))  # another drafter, another process
    assert asked == [2, 1]


def test_missing_layers_and_damaged_files_are_computed_anew(
    target: Target, texts: list[Text], tmp_path: Path, asked: list[int]
) -> None:
    FeatureCache(tmp_path, target, [1]).batch(texts, (1,))
    cache = FeatureCache(tmp_path, target, [1])
    got = cache.batch(texts, (1, 5))
    torch.testing.assert_close(got.taps, target_features(target, texts, (1, 5)).taps, **ROUNDED)
    del asked[:]
    next(tmp_path.glob("*/*.safetensors")).write_bytes(b"cut short")
    for _ in range(2):
        cache.batch(texts, (1, 5))
    assert asked == [1]


def test_targets_do_not_share_features(target: Target, texts: list[Text], tmp_path: Path) -> None:
    from tests.tiny import tiny_target

    other = tiny_target(seed=5)
    FeatureCache(tmp_path, target, [1]).batch(texts, (1,))
    got = FeatureCache(tmp_path, other, [1]).batch(texts, (1,))
    torch.testing.assert_close(got.taps, target_features(other, texts, (1,)).taps, **ROUNDED)


def test_a_folder_that_cannot_be_written_is_refused(target: Target, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DraftgymError, match="--features"):
        FeatureCache(tmp_path / "file", target, [1])


def test_a_folder_that_goes_away_is_done_without(
    target: Target, texts: list[Text], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = FeatureCache(tmp_path / "features", target, (1, 2))
    shutil.rmtree(tmp_path / "features")
    (tmp_path / "features").write_text("a file: not even root writes into it")
    for _ in range(2):
        batch = cache.batch(texts, (1,))
        assert torch.equal(batch.taps, target_features(target, texts, (1,)).taps)
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot write" in line and "--features" in line


def test_features_stored_in_the_targets_own_dtype_are_not_rounded(
    target: Target, texts: list[Text], tmp_path: Path, asked: list[int]
) -> None:
    FeatureCache(tmp_path, target, [1]).batch(texts, (1,))  # rounded ones do not do
    exact = FeatureCache(tmp_path, target, [1], stored=torch.float32)
    computed, read = exact.batch(texts, (1,)), exact.batch(texts, (1,))
    FeatureCache(tmp_path, target, [1]).batch(texts, (1,))  # who rounds may read exact ones
    assert asked == [3, 3]
    wanted = target_features(target, texts, (1,))
    for got in (computed, read):
        assert torch.equal(got.taps, wanted.taps) and torch.equal(got.hidden, wanted.hidden)
