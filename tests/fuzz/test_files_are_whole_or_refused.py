"""A file that is read again is either whole or refused with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json, read_json, replacing, write_json
from tests.fuzz.conftest import Fresh

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), VALUES))
def test_what_is_written_is_read(fresh: Fresh, body: dict[str, object]) -> None:
    path = fresh() / "body.json"
    write_json(path, body)
    assert read_json(path, "-") == json.loads(json.dumps(body))
    assert list(path.parent.iterdir()) == [path]


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_are_an_object_or_refused(fresh: Fresh, data: bytes) -> None:
    path = fresh() / "body.json"
    path.write_bytes(data)
    try:
        assert isinstance(read_json(path, "write it again"), dict)
    except DraftgymError as error:
        assert str(path) in error.problem and error.remedy == "write it again"


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "[1]", "", '{"a": 1'],
    ids=["twice", "deep", "digits", "list", "empty", "cut"],
)
def test_strange_json_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(DraftgymError, match=r"a\.json") as refused:
        parse_json(text, "a.json", "write it again")
    assert refused.value.remedy == "write it again"


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "body.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("{")
        raise RuntimeError
    assert read_json(path, "-") == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
