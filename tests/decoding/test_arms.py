"""An arm is written drafter:length, or drafter:depth x nodes for a tree; mistakes are explained."""

from __future__ import annotations

import pytest

from draftgym.decoding.arms import Arm, check_arms, parse_arm
from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.errors import DraftgymError


@pytest.mark.parametrize(
    ("text", "arm", "shape"),
    [
        ("plain", Arm("plain", 0), DraftShape(0)),
        ("eagle3:4", Arm("eagle3", 4), DraftShape(4)),
        ("eagle3:5x16", Arm("eagle3", 5, 16), DraftShape(5, 16)),
        ("dflash:1x1", Arm("dflash", 1, 1), DraftShape(1, 1)),
    ],
)
def test_an_arm_reads_and_prints_alike(text: str, arm: Arm, shape: DraftShape) -> None:
    assert parse_arm(text) == arm == parse_arm(str(arm))
    assert str(arm) == text
    assert arm.shape == shape and shape.is_tree == ("x" in text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("eagle3:0", "eagle3:4"),
        ("eagle3:x16", "eagle3:4"),
        ("eagle3:5x", "eagle3:5x16"),
        ("eagle3:5x0", "eagle3:5x16"),
        ("eagle3:5x4x2", "eagle3:5x16"),
        ("eagle3:5x4", "eagle3:4x4"),
    ],
)
def test_a_misspelt_size_is_refused_with_a_remedy(text: str, word: str) -> None:
    with pytest.raises(DraftgymError) as caught:
        parse_arm(text)
    assert text in caught.value.problem and word in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "word"),
    [("ngram:4x8", "ngram:4"), ("eagle3:4x65", "64"), ("dflash:9x16", "length of at most 4")],
)
def test_a_drafter_is_not_asked_for_trees_it_cannot_draw(
    drafters: dict[str, Drafter], text: str, word: str
) -> None:
    check_arms([parse_arm("eagle3:16x64"), parse_arm("dflash:4x64")], drafters)
    with pytest.raises(DraftgymError) as caught:
        check_arms([parse_arm(text)], drafters)
    assert text in caught.value.problem and word in caught.value.remedy


def test_cutting_a_shape_keeps_its_budget() -> None:
    assert DraftShape(5, 16).cut(2) == DraftShape(2, 16)
    assert DraftShape(5, 16).cut(9) == DraftShape(5, 16)
    assert DraftShape(5).cut(3) == DraftShape(3) and DraftShape(3).budget == 3
