"""The shipped prompt sets are balanced and disjoint; the loader says where a file is wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.prompts.sets import (
    Prompt,
    further_turns,
    interleave_categories,
    load_prompts,
    note_first_turns,
)

CATEGORIES = ("chat", "code", "math", "summary", "structured")
GOOD = '{"question_id": "a", "category": "chat", "turns": ["Hello"]}'


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def trigrams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + 3]) for i in range(len(found) - 2)}


def overlap(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def write(folder: Path, *lines: str) -> Path:
    path = folder / "mine.jsonl"
    path.write_bytes("\n".join(lines).encode())
    return path


def complaint(path: Path) -> DraftgymError:
    with pytest.raises(DraftgymError) as caught:
        load_prompts(path)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_shipped_set_has_thirty_single_turn_prompts_per_category(name: str) -> None:
    prompts = load_prompts(name)
    assert Counter(p.category for p in prompts) == dict.fromkeys(CATEGORIES, 30)
    expected = [f"{c}-{name}-{i:03d}" for c in CATEGORIES for i in range(1, 31)]
    assert [p.question_id for p in prompts] == expected
    assert all(len(p.turns) == 1 for p in prompts)


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_shipped_prompts_are_neither_stubs_nor_walls_of_text(name: str) -> None:
    for prompt in load_prompts(name):
        low, high = (70, 170) if prompt.category == "summary" else (7, 90)
        assert low <= len(words(prompt.text)) <= high, prompt.question_id
        assert prompt.text == prompt.text.strip()


def test_no_shipped_prompt_resembles_another() -> None:
    prompts = load_prompts("train") + load_prompts("heldout")
    grams = [(p.question_id, trigrams(p.text)) for p in prompts]
    close = [(a, b) for (a, x), (b, y) in combinations(grams, 2) if overlap(x, y) >= 0.25]
    assert close == []


def test_resemblance_check_notices_swapped_numbers() -> None:
    text = next(p.text for p in load_prompts("train") if p.category == "math")
    altered = text.replace("264", "384")
    assert altered != text
    assert overlap(trigrams(text), trigrams(altered)) >= 0.25


def test_default_is_the_held_out_set() -> None:
    assert load_prompts() == load_prompts("heldout")


def test_foreign_file_in_mt_bench_shape_loads(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"question_id": 81, "category": "writing", "turns": ["One", "Two"], "reference": ["x"]}',
        "",
        '  {"question_id": 82, "turns": ["Line\\nbreak \u2028 é"]}\r',
        "",
    )
    first, second = load_prompts(str(path))
    assert first == Prompt("81", "writing", ("One", "Two"))
    assert first.text == "One"
    assert second == Prompt("82", "uncategorised", ("Line\nbreak \u2028 é",))


def test_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert [p.text for p in load_prompts(path)] == ["Hello"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question_id": "b", ', "not JSON that can be read: Expecting property name"),
        ('["b", "chat"]', "is JSON, but not an object"),
        (
            '{"question_id": "b", "turns": ["x"], "turns": ["y"]}',
            "the key 'turns' stands in it twice",
        ),
        ('{"question_id": ' + "9" * 5000 + ', "turns": ["x"]}', "not JSON that can be read"),
        ('{"turns": ' + "[" * 100_000, "nested too deeply"),
        ('{"question_id": "b", "turns": ["half \\ud800"]}', "half a character"),
        ('{"question_id": "\\udfff", "turns": ["x"]}', "half a character"),
        ('{"question_id": "b", "turns": ["\0"]}', "Invalid control character"),
        ('{"question_id": "b"}', '"turns" is missing'),
        ('{"question_id": "b", "turns": []}', '"turns" is missing, empty'),
        ('{"question_id": "b", "turns": "Hello"}', "not a list"),
        ('{"question_id": "b", "turns": ["Hello", 3]}', "turn 2 is empty or not text"),
        ('{"question_id": "b", "turns": [" "]}', "turn 1 is empty or not text"),
        ('{"turns": ["Hello"]}', '"question_id" is missing'),
        ('{"question_id": true, "turns": ["Hello"]}', '"question_id" is missing'),
        ('{"question_id": "b", "category": 3, "turns": ["Hello"]}', '"category" must be text'),
        (GOOD, "question_id 'a' is already used in line 1"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path, GOOD, "", line)
    error = complaint(path)
    assert error.problem.startswith(f"{path}, line 3: ")
    assert says in error.problem


def test_integer_and_text_ids_may_not_collide(tmp_path: Path) -> None:
    path = write(
        tmp_path, *(json.dumps({"question_id": i, "turns": ["Hello"]}) for i in (7, 8, "7"))
    )
    assert f"{path}, line 3: question_id '7' is already used in line 1" in complaint(path).problem


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + GOOD.replace("Hello", "Caf\xe9").encode("latin-1"))
    error = complaint(path)
    assert f"{path}, line 2: not UTF-8" in error.problem
    assert "UTF-8" in error.remedy


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "wide.jsonl"
    path.write_bytes(GOOD.encode(encoding))
    assert f"{path}, line 1: " in complaint(path).problem


def test_later_turns_are_counted_aloud_where_they_are_not_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = (["One"], ["One", "Two"], ["One", "Two", "Three"])
    lines = (json.dumps({"question_id": i, "turns": mine}) for i, mine in enumerate(turns))
    prompts = load_prompts(write(tmp_path, *lines))
    assert capsys.readouterr().err == ""
    note_first_turns(prompts)
    said = capsys.readouterr().err
    assert said.endswith("2 of 3 prompts have further turns, which are not played\n")
    assert said.count("\n") == 1 and further_turns(prompts) == 2
    note_first_turns(load_prompts("heldout"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_file_without_prompts_is_refused(tmp_path: Path, content: str) -> None:
    assert "contains no prompts" in complaint(write(tmp_path, content)).problem


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in complaint(tmp_path).problem


@pytest.mark.parametrize(("typed", "meant"), [("held-out", "heldout"), ("trian", "train")])
def test_mistyped_set_name_gets_a_suggestion(typed: str, meant: str) -> None:
    with pytest.raises(DraftgymError, match=f"did you mean '{meant}'"):
        load_prompts(typed)


def test_missing_file_is_named(tmp_path: Path) -> None:
    error = complaint(tmp_path / "absent.jsonl")
    assert "absent.jsonl" in error.problem
    assert "did you mean" not in error.remedy


def test_file_with_the_name_of_a_set_is_reached_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert len(load_prompts("train")) == 150
    assert len(load_prompts(Path("train"))) == len(load_prompts("./train")) == 1


def test_limit_keeps_the_first_prompts_of_each_category() -> None:
    kept = load_prompts("train", limit_per_category=2)
    assert [p.question_id for p in kept] == [f"{c}-train-00{i}" for c in CATEGORIES for i in (1, 2)]


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(DraftgymError, match="at least 1"):
        load_prompts("train", limit_per_category=limit)


def test_categories_filter_and_a_lone_string_is_one_category() -> None:
    both = load_prompts("train", categories=["math", "code"])
    assert Counter(p.category for p in both) == {"code": 30, "math": 30}
    assert load_prompts("train", categories="math") == [p for p in both if p.category == "math"]


def test_unknown_category_lists_the_known_ones() -> None:
    with pytest.raises(DraftgymError, match="no category 'maths'") as caught:
        load_prompts("train", categories=["code", "maths"])
    assert "did you mean 'math'" in caught.value.remedy
    assert all(category in caught.value.remedy for category in CATEGORIES)
    with pytest.raises(DraftgymError, match="empty list of categories"):
        load_prompts("train", categories=[])


def test_every_prefix_of_interleaved_prompts_is_balanced() -> None:
    dealt = interleave_categories(load_prompts("train"))
    assert sorted(dealt, key=hash) == sorted(load_prompts("train"), key=hash)
    for end in range(1, len(dealt) + 1):
        counts = Counter(p.category for p in dealt[:end])
        assert max(counts.values()) - min(counts[c] for c in CATEGORIES) <= 1


def test_interleaving_skips_categories_that_ran_out() -> None:
    prompts = [Prompt(i, c, ("x",)) for i, c in [("1", "b"), ("2", "b"), ("3", "a"), ("4", "b")]]
    assert [p.question_id for p in interleave_categories(prompts)] == ["1", "3", "2", "4"]
    assert interleave_categories([]) == []
