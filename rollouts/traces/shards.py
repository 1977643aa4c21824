"""A folder of Parquet shards that grows text by text and survives being killed.

A shard appears under its name only when it is whole. What was in memory when the process died is
written again by the next run, token for token, since a text depends on its request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import replacing

Item = TypeVar("Item")


class ShardWriter(Generic[Item]):
    """Collects texts and writes a shard whenever enough are there, and on leaving.

    Args:
        folder: Where.
        to_table: Makes a pyarrow table of some texts.
        size: Texts per shard.
        first: Number of the first file, where the files behind it are free, too; by default behind
            all that are there.
        whole: Whether an error on leaving keeps no shard of fewer texts.
    """

    def __init__(
        self,
        folder: Path,
        to_table: Callable[[Sequence[Item]], Any],
        size: int,
        first: int | None = None,
        whole: bool = False,
    ) -> None:
        self.folder, self.to_table, self.size, self.whole = folder, to_table, size, whole
        self._buffer: list[Item] = []
        self._next = 1 + max(numbers_in(folder), default=-1) if first is None else first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or not self.whole:
            self.flush()  # an interrupt keeps what is finished

    def add(self, text: Item) -> None:
        """Takes a finished text."""
        self._buffer.append(text)
        if len(self._buffer) >= self.size:
            self.flush()

    def flush(self) -> None:
        """Writes what is there as a shard of its own."""
        import pyarrow.parquet

        if not self._buffer:
            return
        shard = shard_path(self.folder, self._next)
        table = self.to_table(self._buffer)
        with replacing(shard) as unfinished:  # readers of the folder pass over it
            options = {"compression": "zstd", **_encoding(table.schema)}
            pyarrow.parquet.write_table(table, unfinished, **options)
        self._buffer.clear()
        self._next += 1


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"part-{number:05d}.parquet"


def numbers_in(folder: Path) -> set[int]:
    """Numbers of the whole shards of a folder."""
    return set(map(_number, shards_in(folder)))


def shards_in(folder: Path) -> list[Path]:
    """Whole shards of a folder, in the order in which they were written."""
    return sorted(folder.glob("part-*.parquet"), key=_number)


def _encoding(schema: Any) -> dict[str, Any]:
    """Floats byte by byte, the first bytes of all first: a quarter less than as they come."""
    leaves = {
        f"{field.name}.list.element" if "list" in str(field.type) else field.name: str(field.type)
        for field in schema
    }
    floats = [name for name, kind in leaves.items() if "float" in kind or kind == "double"]
    return {
        "use_dictionary": [name for name in leaves if name not in floats],
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    }


def _number(shard: Path) -> int:
    digits = shard.stem.partition("-")[2]
    if not digits.isdecimal():
        raise DraftgymError(f"{shard} is no shard of this folder", "move the file elsewhere")
    return int(digits)
