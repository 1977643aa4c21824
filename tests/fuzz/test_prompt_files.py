"""A prompt file is read, or refused with the line and a remedy, whatever is in it."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.prompts.sets import Prompt, load_prompts
from tests.fuzz.conftest import Fresh

TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates too
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["question_id", "category", "turns", "reference", "turn"])
RECORDS = st.fixed_dictionaries(
    {"question_id": st.integers() | TEXTS, "turns": st.lists(TEXTS, min_size=1, max_size=3)},
    optional={"category": TEXTS | st.none()},
)
LINES = st.lists(
    RECORDS.map(json.dumps)
    | st.dictionaries(KEYS, VALUES).map(json.dumps)
    | VALUES.map(json.dumps)
    | TEXTS
    | st.tuples(RECORDS.map(json.dumps), st.integers(0, 60)).map(lambda one: one[0][: one[1]]),
    max_size=5,
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])


def read_or_refused(folder: Path, data: bytes) -> list[Prompt]:
    """The prompts of a file with these bytes; nothing where it is refused, with a remedy."""
    path = folder / "mine.jsonl"
    path.write_bytes(data)
    try:
        prompts = load_prompts(path)
    except DraftgymError as error:
        assert str(path) in error.problem and error.remedy
        assert len(error.problem) < 1000 + len(str(path)), "a message is read by people"
        return []
    assert prompts and len({one.question_id for one in prompts}) == len(prompts)
    for one in prompts:
        for text in (one.question_id, one.category, *one.turns):
            assert text.strip() and text.encode("utf-8")
    return prompts


@given(st.binary(max_size=200))
@example(b"\x00" * 10)
@example(b'{"question_id": 1, "turns": ["' + b"x" * 1_000_000 + b'"]}')
@example(b'{"question_id": 1, "turns": ' + b"[" * 100_000)
@example(b'{"question_id": ' + b"9" * 5000 + b', "turns": ["x"]}')
@example(b'{"question_id": 1, "category": ' + b"[" * 900 + b"]" * 900 + b', "turns": ["x"]}')
def test_bytes(fresh: Fresh, data: bytes) -> None:
    read_or_refused(fresh(), data)


@given(LINES, ENCODINGS, st.sampled_from(["\n", "\r\n", "\r"]))
def test_lines(fresh: Fresh, lines: list[str], encoding: str, ending: str) -> None:
    data = ending.join(lines).encode(encoding, "surrogatepass")
    read_or_refused(fresh(), data)


@given(st.lists(RECORDS, min_size=1, max_size=4, unique_by=lambda one: str(one["question_id"])))
def test_nothing_is_lost(fresh: Fresh, records: list[dict[str, object]]) -> None:
    """What can be read comes back as it was written, in its order."""
    data = "\n".join(map(json.dumps, records)).encode()
    prompts = read_or_refused(fresh(), data)
    told = [(str(one["question_id"]), one["turns"]) for one in records]
    assert [(one.question_id, list(one.turns)) for one in prompts] in ([], told)
