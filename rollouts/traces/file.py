"""Traces on disk: a folder of Parquet shards, one row per token.

    column             type                  what
    question_id        dictionary<string>    which prompt
    category           dictionary<string>    what kind
    prompt_hash        dictionary<string>    short hash of the prompt's token ids
    prompt_tokens      int32                 their number
    position           int32                 place of the token in the new text, from 0
    token              int32                 its id
    entropy ..         float32               `draftgym.decoding.observers.observation.TEXT_SIGNALS`
    hidden             float32[d]            final hidden state that the token was chosen from;
                                             float16, or left out, where the origin's `states`
                                             says so (`draftgym collect --states`)
    <arm>.committed    int16                 what a round whose anchor is this token would do;
    <arm>.drafted      int16                 0 in the last row of a text, which needs no round
    <arm>.depth        int16
    <drafter>.logprobs float32[longest]      what the drafter thought of its longest chain's tokens
    <drafter>.tokens   int32[longest]        these tokens
    <drafter>.match    int16                 newest tokens that agree with where it copies from, if
                                             it looks up
    <drafter>.scores   float32[longest]      how likely verification was to commit them; only where
                                             texts are sampled
    <arm>.tokens       int32[nodes]          nodes of a tree
    <arm>.parents      int8[nodes]           index of each node's parent, -1 for the anchor
    <arm>.logprobs     float32[nodes]        what the drafter thought of them
    <arm>.scores       float32[nodes]        as above
    <arm>.match        int16                 as above

A text lies in one shard, its rows in order. The schema's metadata holds one JSON object under the
key `draftgym`: kind, schema version, and the `TraceOrigin` with hashes, seed and cost model.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json
from draftgym.decoding.model.fingerprint import is_sampled
from draftgym.decoding.observers.observation import TEXT_SIGNALS
from draftgym.rollouts.traces.shards import shards_in
from draftgym.rollouts.traces.trace import (
    ONE_FOR_ALL,
    ArmTrace,
    Drafts,
    TextTrace,
    TraceOrigin,
    TraceSet,
)

KIND, SCHEMA_VERSION = "trace", 5
OLDER = (2, 3, 4)
"""As now, but without scores, and before version 4 without drafted tokens and matches."""
ONE_SEED_VERSION = 2
"""Sampled texts had one seed for all (`TraceOrigin.seeding`)."""
METADATA_KEY = b"draftgym"
TEXT_COLUMNS = ("question_id", "category", "prompt_hash")
PARTS = ("committed", "drafted", "depth")
LOGPROBS, SCORES, TOKENS, PARENTS = ".logprobs", ".scores", ".tokens", ".parents"
MATCH = ".match"
AGAIN = "collect it again with draftgym collect"


def trace_table(texts: Sequence[TextTrace], origin: TraceOrigin) -> Any:
    """A shard's table."""
    import pyarrow as pa

    def column(name: str) -> Any:
        repeated = [value for text in texts for value in [getattr(text, name)] * len(text.tokens)]
        return pa.array(repeated).dictionary_encode()

    columns = {name: column(name) for name in TEXT_COLUMNS}
    lengths = [len(text.tokens) for text in texts]
    prompts = np.repeat([text.prompt_tokens for text in texts], lengths).astype(np.int32)
    columns["prompt_tokens"] = pa.array(prompts)
    columns["position"] = pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]))
    tokens = np.concatenate([text.tokens for text in texts]).astype(np.int32)
    columns["token"] = pa.array(tokens)
    signals = np.concatenate([text.signals for text in texts])
    for index, name in enumerate(TEXT_SIGNALS):
        columns[name] = pa.array(signals[:, index])
    if origin.holds_states:
        hidden = np.concatenate([_stored(text, origin.states) for text in texts])
        columns["hidden"] = pa.FixedSizeListArray.from_arrays(
            pa.array(hidden.ravel()), hidden.shape[1]
        )
    for arm in origin.arms:
        for part in PARTS:
            rows = [np.append(getattr(text.arms[arm], part), 0) for text in texts]
            columns[f"{arm}.{part}"] = pa.array(np.concatenate(rows).astype(np.int16))
    for name, per_text in _lists(texts):
        lists = np.concatenate([np.pad(one, ((0, 1), (0, 0))) for one in per_text])
        columns[name] = pa.FixedSizeListArray.from_arrays(lists.ravel(), lists.shape[1])
    for drafter in texts[0].matches:
        matches = [np.append(text.matches[drafter], 0) for text in texts]
        columns[f"{drafter}{MATCH}"] = pa.array(np.concatenate(matches).astype(np.int16))
    body = {"kind": KIND, "schema_version": SCHEMA_VERSION, "origin": origin.to_json()}
    table = pa.table(columns)
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(body).encode()})


def _stored(text: TextTrace, states: str) -> NDArray[Any]:
    """Hidden states as they are stored.

    Raises:
        DraftgymError: One is too large for that.
    """
    if text.hidden.dtype == states:
        return text.hidden
    largest, limit = float(np.abs(text.hidden).max()), float(np.finfo(states).max)
    if largest > limit:
        raise DraftgymError(
            f"a hidden state of text {text.question_id!r} has an entry of size {largest:g}, and "
            f"{states} ends at {limit:g}",
            "collect with --states float32, into another folder",
        )
    return text.hidden.astype(states)


def _lists(texts: Sequence[TextTrace]) -> Iterator[tuple[str, list[NDArray[Any]]]]:
    """Columns whose rows are lists, with the rows of every text `[n, width]`."""
    for name in texts[0].logprobs:
        yield f"{name}{LOGPROBS}", [text.logprobs[name] for text in texts]
    for name in texts[0].scores:
        yield f"{name}{SCORES}", [text.scores[name] for text in texts]
    for name, draft in texts[0].drafts.items():
        yield f"{name}{TOKENS}", [text.drafts[name].tokens for text in texts]
        if draft.parents is not None:
            yield f"{name}{PARENTS}", [np.asarray(text.drafts[name].parents) for text in texts]


def as_traces(source: str | Path | TraceSet) -> TraceSet:
    """Traces as they are given to an environment: a folder, or a loaded `TraceSet`.

    Raises:
        DraftgymError: It is something else, or the folder cannot be read.
    """
    if isinstance(source, TraceSet):
        return source
    if not isinstance(source, str | Path):
        raise DraftgymError(
            f"a {type(source).__name__} is no traces",
            "give their folder (draftgym collect makes it)",
        )
    return read_traces(Path(source))


def read_traces(folder: Path, mapped: bool = False) -> TraceSet:
    """Reads every shard of a folder.

    Args:
        folder: Where.
        mapped: Whether texts stay on disk (`draftgym.rollouts.traces.mapped`).

    Raises:
        DraftgymError: No shards, a damaged or foreign file, or shards of different origins.
    """
    shards = shards_in(folder) if folder.is_dir() else []
    if not shards:
        raise DraftgymError(f"no traces in {folder}", f"make some: draftgym collect --out {folder}")
    from draftgym.rollouts.traces.mapped import FOLDER, mapped_texts

    origin = read_origin(shards[0])
    texts: list[TextTrace] = []
    for shard in shards:
        require_same(read_origin(shard), origin, shard)
        texts += mapped_texts(shard, origin) if mapped else read_texts(shard, origin)
    if origin.seeding == ONE_FOR_ALL:
        print(
            f"note: {folder}: traces of an older kind, whose sampled texts share one noise seed; "
            "intervals over them promise too much",
            file=sys.stderr,
        )
    return TraceSet(origin, texts, folder / FOLDER if mapped else None)


def read_origin(shard: Path) -> TraceOrigin:
    """Where a shard's traces come from.

    Raises:
        DraftgymError: It is no trace, of another version, or damaged.
    """
    import pyarrow.parquet

    with refusing(shard):
        stored = (pyarrow.parquet.read_schema(shard).metadata or {}).get(METADATA_KEY)
        body = parse_json(stored.decode(), "its metadata", AGAIN) if stored else {}
    if body.get("kind") != KIND:
        raise DraftgymError(
            f"{shard} holds no traces", "name a folder of draftgym.rollouts.traces.collect"
        )
    if body.get("schema_version") not in (*OLDER, SCHEMA_VERSION):
        raise DraftgymError(
            f"{shard} has trace version {reprlib.repr(body.get('schema_version'))}, this program "
            f"reads {SCHEMA_VERSION}",
            AGAIN,
        )
    with refusing(shard):
        told = body["origin"]
        one_for_all = body["schema_version"] == ONE_SEED_VERSION and told["temperature"]
        origin = TraceOrigin.from_json(told | ({"seeding": ONE_FOR_ALL} if one_for_all else {}))
    if is_sampled(origin.target_fingerprint):
        raise DraftgymError(
            f"{shard} carries an older version's fingerprint of the target, which read only a "
            "sample of the weights",
            f"{AGAIN} --out FOLDER",
        )
    return origin


def rows_in(shard: Path) -> int:
    """Rows of a shard: new tokens of its texts.

    Raises:
        DraftgymError: It is damaged.
    """
    import pyarrow.parquet

    with refusing(shard):
        return int(pyarrow.parquet.read_metadata(shard).num_rows)


def read_answers(folder: Path, questions: Collection[str]) -> dict[str, list[int]]:
    """New tokens of some texts, by question id; what else is known of them is not read.

    Raises:
        DraftgymError: A damaged shard.
    """
    import pyarrow.parquet

    answers: dict[str, list[int]] = {one: [] for one in questions}
    for shard in shards_in(folder):
        with refusing(shard):
            table = pyarrow.parquet.read_table(shard, columns=["question_id", "token"])
            for question, token in zip(*(one.to_pylist() for one in table.columns), strict=True):
                if question in answers:
                    answers[question].append(token)
    return answers


def read_done(folder: Path, origin: TraceOrigin | None = None) -> dict[str, str]:
    """Prompt hashes of the texts that are there, by question id.

    Args:
        folder: Where.
        origin: Where they must come from; None does not ask.

    Raises:
        DraftgymError: A damaged shard, or traces of another origin.
    """
    import pyarrow.parquet

    done: dict[str, str] = {}
    for shard in shards_in(folder):
        if origin is not None:
            require_same(read_origin(shard), origin, shard)
        with refusing(shard):
            table = pyarrow.parquet.read_table(shard, columns=["question_id", "prompt_hash"])
            questions, hashes = (column.to_pylist() for column in table.columns)
            done.update(zip(questions, hashes, strict=True))
    return done


def require_same(found: TraceOrigin, wanted: TraceOrigin, where: Path) -> None:
    """Raises `DraftgymError` for traces of another origin: other weights, arms or settings."""
    differences = found.differences(wanted)
    if differences:
        raise DraftgymError(
            f"{where} has traces of another origin ({'; '.join(differences)})",
            f"use the same target, drafters and settings, or {AGAIN} into another folder",
        )


@contextmanager
def refusing(shard: Path) -> Iterator[None]:
    """Whatever a damaged file makes of its reader is refused with the remedy."""
    try:
        yield
    except Exception as error:  # pyarrow raises many kinds
        reason = error.problem if isinstance(error, DraftgymError) else repr(error)[:200]
        raise DraftgymError(f"cannot read {shard}: {reason}", f"delete it and {AGAIN}") from error


def read_texts(shard: Path, origin: TraceOrigin) -> list[TextTrace]:
    """The texts of one shard.

    Raises:
        DraftgymError: It is damaged, or not of this origin.
    """
    import pyarrow.parquet

    with refusing(shard):
        arrays, texts = split_texts(pyarrow.parquet.read_table(shard), origin)
        return [read_text(arrays, rows, origin) for rows in texts]


def split_texts(table: Any, origin: TraceOrigin) -> tuple[dict[str, NDArray[Any]], list[slice]]:
    """The columns of a shard's table as arrays, and the rows of each text.

    Raises:
        ValueError: They are not those of traces of this origin.
    """
    table = table.combine_chunks()
    kinds = _column_types(table.column_names, origin)
    for name, kind in kinds.items():
        column = table.column(name)
        if not str(column.type).startswith(kind) or column.null_count:
            raise ValueError(f"column {name} is {column.type}, with {column.null_count} gaps")
    arrays = {name: _array(table.column(name)) for name in kinds}
    if origin.holds_states and arrays["hidden"].dtype != origin.states:
        raise ValueError(f"hidden states are {arrays['hidden'].dtype}, not {origin.states}")
    starts = np.flatnonzero(arrays["position"] == 0)
    lengths = np.diff(np.append(starts, len(table)))
    whole = [np.arange(length) for length in lengths]
    if len(table) and not np.array_equal(arrays["position"], np.concatenate(whole or [starts])):
        raise ValueError("rows are missing or out of order")
    return arrays, [
        slice(int(start), int(start + length))
        for start, length in zip(starts, lengths, strict=True)
    ]


def _column_types(names: Sequence[str], origin: TraceOrigin) -> dict[str, str]:
    """How the Arrow type of each column begins that is read."""
    arms = [f"{arm}.{part}" for arm in origin.arms for part in PARTS]
    lists = [name for name in names if name.endswith((LOGPROBS, SCORES, TOKENS, PARENTS))]
    matches = [name for name in names if name.endswith(MATCH)]
    return {
        **dict.fromkeys(TEXT_COLUMNS, "dictionary<values=string"),
        **dict.fromkeys(("prompt_tokens", "position", "token"), "int32"),
        **dict.fromkeys(TEXT_SIGNALS, "float"),
        **dict.fromkeys((*arms, *matches), "int16"),
        **dict.fromkeys((*lists, *(["hidden"] if origin.holds_states else [])), "fixed_size_list<"),
    }


def _array(column: Any) -> NDArray[Any]:
    """A column as an array; lists of one length become rows."""
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if str(whole.type).startswith("fixed_size_list"):
        return np.asarray(whole.flatten().to_numpy().reshape(len(whole), -1))
    return np.asarray(column.to_numpy())


def read_text(arrays: dict[str, NDArray[Any]], rows: slice, origin: TraceOrigin) -> TextTrace:
    """The text in some rows of a shard's columns.

    Raises:
        ValueError: It is cut.
    """
    rounds, tokens = slice(rows.start, rows.stop - 1), rows.stop - rows.start

    def arm(name: str) -> ArmTrace:
        if arrays[f"{name}.committed"][rows.stop - 1]:
            raise ValueError("a text's last rows are missing")
        return ArmTrace(*(arrays[f"{name}.{part}"][rounds].astype(np.int64) for part in PARTS))

    def ending(suffix: str) -> dict[str, NDArray[Any]]:
        return {
            name.removesuffix(suffix): column[rounds]
            for name, column in arrays.items()
            if name.endswith(suffix)
        }

    parents = ending(PARENTS)
    question, category, prompt = (str(arrays[name][rows.start]) for name in TEXT_COLUMNS)
    return TextTrace(
        question,
        category,
        prompt,
        int(arrays["prompt_tokens"][rows.start]),
        arrays["token"][rows].astype(np.int64),
        np.column_stack([arrays[name][rows] for name in TEXT_SIGNALS]),
        arrays["hidden"][rows] if origin.holds_states else np.zeros((tokens, 0), np.float32),
        {name: arm(name) for name in origin.arms},
        ending(LOGPROBS),
        {name: Drafts(column, parents.get(name)) for name, column in ending(TOKENS).items()},
        {name: column.astype(np.int64) for name, column in ending(MATCH).items()},
        ending(SCORES),
    )
