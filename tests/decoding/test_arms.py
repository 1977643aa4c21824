"""An arm is written drafter:length, or drafter:depth x nodes for a tree; mistakes are explained."""

from __future__ import annotations

import re

import pytest

from draftgym.decoding.arms import Arm, check_arms, parse_arm, single_arms
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
    ("text", "parts", "budget"),
    [
        ("ngram:8@3", ["ngram:8@3"], 8),
        ("ngram:8>eagle3:3x6", ["ngram:8", "eagle3:3x6"], 8),
        ("ngram:8@4>small:2~0.25>dflash:3x9", ["ngram:8@4", "small:2~0.25", "dflash:3x9"], 9),
        ("eagle3:3x6+ngram:8@3", ["eagle3:3x6", "ngram:8@3"], 14),
    ],
)
def test_an_arm_of_several_drafters_reads_and_prints_alike(
    text: str, parts: list[str], budget: int
) -> None:
    arm = parse_arm(text)
    assert str(arm) == text and arm == parse_arm(f" {text} ") and arm.drafts
    assert [*map(str, arm.parts)] == parts
    assert arm.shape.budget == budget
    assert hash(arm) != hash(parse_arm("ngram:8")) and arm != parse_arm("ngram:8")
    assert {*map(str, single_arms([arm, arm]))} == {re.split("[@~]", part)[0] for part in parts}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ngram:8>", "no cascade"),
        ("ngram:8>eagle3:2+dflash:2", "no cascade"),
        ("ngram:8>plain", "drafts nothing"),
        ("eagle3:2+eagle3:3", "asks a drafter twice"),
        ("eagle3:3x60+ngram:8", "68 nodes"),
        ("ngram:8@0>eagle3:2", "match length '0'"),
        ("ngram:8@", "match length ''"),
        ("eagle3:2~1", "path probability '1'"),
        ("eagle3:2~often", "path probability 'often'"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_with_a_remedy(text: str, problem: str) -> None:
    with pytest.raises(DraftgymError, match=problem) as caught:
        parse_arm(text)
    assert caught.value.remedy


def test_what_cannot_be_served_together_is_refused(drafters: dict[str, Drafter]) -> None:
    for text, problem in (
        ("eagle3:2@3>ngram:8", "matches nothing"),
        ("ngram:8>eagle9:2", "unknown drafter"),
        ("ngram:17+eagle3:2", "more than ngram can"),
    ):
        with pytest.raises(DraftgymError, match=problem):
            check_arms([parse_arm(text)], drafters)
    check_arms([parse_arm("ngram:8>eagle3:2")], drafters, trees=False)
    with pytest.raises(DraftgymError, match="chains only") as caught:
        check_arms([parse_arm("eagle3:2+ngram:8")], drafters, trees=False)
    assert "eagle3:2>ngram:8" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        ("eagle3:5x16", 4, "eagle3:4x4"),
        ("ngram:8", 9, "ngram:8"),
        ("ngram:8@3>eagle3:3x6", 4, "ngram:4@3>eagle3:3x4"),
        ("eagle3:3x6+ngram:8", 9, "eagle3:3x6+ngram:3"),
        ("eagle3:3x6+ngram:8", 6, "eagle3:3x6"),
        ("eagle3:3x6+ngram:8", 0, "plain"),
    ],
)
def test_a_cut_arm_drafts_no_more_than_that(text: str, most: int, short: str) -> None:
    cut = parse_arm(text).cut(most)
    assert str(cut) == short and cut.shape.budget <= most


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
