"""A folder of responses that grows shard by shard and survives being killed.

A shard appears under its name only when it is whole. What was in memory when the process died is
written again by the next run, token for token, since a text depends on its request alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from decoding.errors import DraftgymError
from decoding.provenance import check_run_folder
from drafters.training.responses import read_metadata, response_schema
from rollouts.batched import Response

Done = dict[tuple[str, float], list[int]]
"""Prompts (token ids) of the texts that are there, by question id and temperature."""


class ShardWriter:
    """Collects responses and writes a shard whenever enough are there, and on leaving.

    Args:
        folder: Where.
        metadata: What each shard says about its origin.
        size: Texts per shard.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, Any], size: int) -> None:
        self.folder, self.size = folder, size
        self._schema = response_schema(dict(metadata))
        self._buffer: list[Response] = []
        self._next = 1 + max((_number(shard) for shard in shards_in(folder)), default=-1)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()  # an interrupt keeps what is finished

    def add(self, response: Response) -> None:
        """Takes a finished text."""
        self._buffer.append(response)
        if len(self._buffer) >= self.size:
            self.flush()

    def flush(self) -> None:
        """Writes what is there as a shard of its own."""
        import pyarrow
        import pyarrow.parquet

        if not self._buffer:
            return
        rows = [
            {
                "id": one.request.question_id,
                "category": one.request.category,
                "temperature": one.request.temperature,
                "seed": one.request.seed,
                "prompt": one.request.prompt.tolist(),
                "response": one.tokens,
            }
            for one in self._buffer
        ]
        shard = self.folder / f"part-{self._next:05d}.parquet"
        unfinished = shard.with_name(f".{shard.name}")  # readers of the folder pass over it
        table = pyarrow.Table.from_pylist(rows, self._schema)
        pyarrow.parquet.write_table(table, unfinished, compression="zstd")
        unfinished.replace(shard)
        self._buffer.clear()
        self._next += 1


def shards_in(folder: Path) -> list[Path]:
    """Whole shards of a folder, in the order in which they were written."""
    return sorted(folder.glob("part-*.parquet"), key=_number)


def read_done(folder: Path, settings: Mapping[str, Any]) -> Done:
    """Which texts are there already.

    Args:
        folder: Folder of shards.
        settings: What decides the texts; shards that were written with others are refused.

    Raises:
        DraftgymError: A damaged shard, or one with other settings.
    """
    import pyarrow.parquet

    done: Done = {}
    for shard in shards_in(folder):
        before = read_metadata(shard).get("settings", {})
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise DraftgymError(
                f"{shard} was written with other settings "
                f"({', '.join(f'{key}: {before.get(key)}' for key in changed)})",
                "go on with the settings of the first run, or name another folder with --out",
            )
        columns = ["id", "temperature", "prompt"]
        for row in pyarrow.parquet.read_table(shard, columns=columns).to_pylist():
            done[row["id"], row["temperature"]] = row["prompt"]
    return done


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other writers out; the lock vanishes with its process."""
    check_run_folder(folder, "--out")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DraftgymError(
            f"another process is writing to {folder}", "wait for it, or name another --out"
        ) from None
    except OSError as error:
        raise DraftgymError(
            f"cannot write to {folder}: {error.strerror}", "name another folder with --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_same_prompts(done: Done, prompts: Sequence[tuple[str, list[int]]]) -> None:
    """Raises `DraftgymError` for a question that was answered when it still read differently.

    Args:
        done: What is there.
        prompts: Question ids with their token ids now.
    """
    now = dict(prompts)
    for (question, _), tokens in done.items():
        if question in now and now[question] != tokens:
            raise DraftgymError(
                f"question {question!r} was answered before with another text",
                "give changed prompts new ids, or write to another folder with --out",
            )


def _number(shard: Path) -> int:
    digits = shard.stem.partition("-")[2]
    if not digits.isdecimal():
        raise DraftgymError(f"{shard} is no shard of this folder", "move the file elsewhere")
    return int(digits)
