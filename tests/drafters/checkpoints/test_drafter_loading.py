"""A run gets the shipped drafters that fit its target, the user's own, and those that copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.drafters.checkpoint import save_checkpoint
from draftgym.drafters.loading import find_checkpoints, load_drafters
from draftgym.drafters.small_lm.network import save_small_lm
from draftgym.drafters.training.objectives.small_lm import cut_layers
from tests.tiny import tiny_eagle3, tiny_model, tiny_target
from tests.tiny_text import save_drafters


@pytest.fixture(scope="module")
def shipped(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with both drafters, and a router beside them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_drafters(target, folder)
    (folder / "router").mkdir()
    (folder / "router" / "config.json").write_text(json.dumps({"arms": ["eagle3:4"]}))
    return folder


def test_shipped_drafters_of_this_target_load(target: Target, shipped: Path) -> None:
    assert list(load_drafters(target, shipped=shipped)) == ["eagle3", "dflash", "ngram", "suffix"]


def test_another_target_gets_those_that_copy_and_a_note(
    shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_target(seed=7)
    assert list(load_drafters(other, shipped=shipped)) == ["ngram", "suffix"]
    assert "train_drafter.py" in capsys.readouterr().err


def test_a_given_drafter_takes_the_place_of_the_shipped_one(
    target: Target, shipped: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    save_checkpoint(tiny_eagle3(target, seed=5).network, mine, target)
    found = find_checkpoints(target, [mine], shipped)
    assert found == {"eagle3": mine, "dflash": shipped / "dflash"}
    assert list(load_drafters(target, [mine], shipped)) == ["eagle3", "dflash", "ngram", "suffix"]


def test_a_given_drafter_of_another_target_is_refused(shipped: Path) -> None:
    with pytest.raises(DraftgymError, match="another target"):
        load_drafters(tiny_target(seed=7), [shipped / "eagle3"], shipped)


def test_two_given_drafters_of_one_kind_are_refused(target: Target, shipped: Path) -> None:
    with pytest.raises(DraftgymError, match="two eagle3"):
        load_drafters(target, [shipped / "eagle3", shipped / "eagle3"], shipped)


def test_a_given_folder_without_a_drafter_is_refused(
    target: Target, shipped: Path, tmp_path: Path
) -> None:
    with pytest.raises(DraftgymError, match="no drafter checkpoint"):
        load_drafters(target, [tmp_path], shipped)
    with pytest.raises(DraftgymError, match="remedy"):
        load_drafters(target, [shipped / "router"], shipped)


def test_a_shipped_small_lm_loads_for_its_target_and_a_given_one_for_any(
    target: Target, shipped: Path, tmp_path: Path
) -> None:
    small = cut_layers(tiny_model(), [0, 5])  # the fixture's target is this model
    save_small_lm(small, tmp_path / "shipped" / "small-lm", target)
    assert list(load_drafters(target, shipped=tmp_path / "shipped")) == ["small", "ngram", "suffix"]
    other = tiny_target(seed=7)
    assert list(load_drafters(other, shipped=tmp_path / "shipped")) == ["ngram", "suffix"]
    given = [tmp_path / "shipped" / "small-lm"]
    assert list(load_drafters(other, given, shipped)) == ["small", "ngram", "suffix"]
    kinds = ["eagle3", "dflash", "small", "ngram", "suffix"]
    assert list(load_drafters(target, given, shipped)) == kinds
