"""Traces that stay on disk: the system reads the pages that are looked at, and lets go of them.

Parquet is compressed and cannot be mapped into memory. Beside a folder's shards there is, once it
was asked for, the same table of each as an uncompressed Arrow file:

    part-00000.parquet          what `draftgym collect` writes, and what is shared
    .mapped/part-00000.arrow    made of it once, and again where it is older
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.files import replacing
from draftgym.rollouts.traces.file import TEXT_COLUMNS, TOKENS, read_text, refusing, split_texts
from draftgym.rollouts.traces.trace import TextTrace, TraceOrigin

FOLDER = ".mapped"
RECENT = 128
"""Texts that are kept in memory as a whole."""


class MappedShard:
    """A shard whose columns are views of a file that is mapped into memory.

    Args:
        shard: The Parquet file.
        origin: Where its texts come from.

    Attributes:
        arrays: Columns by name `[R, ...]`.
        rows: Rows of each text.
        origin: As above.

    Raises:
        DraftgymError: It is damaged.
    """

    def __init__(self, shard: Path, origin: TraceOrigin) -> None:
        import pyarrow

        self.origin = origin
        with refusing(shard):
            with pyarrow.memory_map(str(_mapped(shard))) as source:
                table = pyarrow.ipc.open_file(source).read_all()
            self.arrays, self.rows = split_texts(table, origin)
        arrays: dict[str, Any] = self.arrays
        for name in TEXT_COLUMNS:  # of which one row a text is read
            arrays[name] = {rows.start: str(arrays[name][rows.start]) for rows in self.rows}


class StoredText(TextTrace):
    """A text of a mapped shard: what is asked of it is read then, and not kept.

    Args:
        shard: Where it lies.
        index: The how-manieth text of it.
    """

    def __init__(self, shard: MappedShard, index: int) -> None:
        rows = shard.rows[index]
        facts: dict[str, Any] = {name: shard.arrays[name][rows.start] for name in TEXT_COLUMNS}
        facts["prompt_tokens"] = int(shard.arrays["prompt_tokens"][rows.start])
        vars(self).update(facts, _shard=shard, _index=index)

    def __len__(self) -> int:
        rows = self._shard.rows[self._index]
        return int(rows.stop - rows.start - 1)

    def holds_drafts(self, key: str) -> bool:
        """See `TextTrace.holds_drafts`; asked of every text, so that nothing of it is read."""
        return f"{key}{TOKENS}" in self._shard.arrays

    def __getattr__(self, name: str) -> Any:
        """Everything else is read."""
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "hidden" and self._shard.origin.holds_states:
            return self._shard.arrays["hidden"][self._shard.rows[self._index]]
        return getattr(_whole(self._shard, self._index), name)


def mapped_texts(shard: Path, origin: TraceOrigin) -> Iterator[StoredText]:
    """The texts of a shard; its Arrow file is made where there is none.

    Raises:
        DraftgymError: The shard is damaged.
    """
    opened = MappedShard(shard, origin)
    return (StoredText(opened, index) for index in range(len(opened.rows)))


@lru_cache(maxsize=RECENT)
def _whole(shard: MappedShard, index: int) -> TextTrace:
    return read_text(shard.arrays, shard.rows[index], shard.origin)


def _mapped(shard: Path) -> Path:
    """The Arrow file of a shard, which is made where it is missing or older."""
    import pyarrow.ipc
    import pyarrow.parquet

    mapped = shard.parent / FOLDER / f"{shard.stem}.arrow"
    if not mapped.exists() or mapped.stat().st_mtime_ns < shard.stat().st_mtime_ns:
        mapped.parent.mkdir(exist_ok=True)
        table = pyarrow.parquet.read_table(shard).combine_chunks()
        with replacing(mapped) as unfinished, pyarrow.ipc.new_file(unfinished, table.schema) as out:
            out.write_table(table, max_chunksize=max(1, len(table)))
    return mapped


class Room:
    """Where large arrays are laid out: in memory, or in files that vanish with their array.

    Args:
        folder: Where those files are; None for memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array that holds anything."""
        if self.folder is None or 0 in shape:
            return np.empty(shape, dtype)
        import tempfile

        with tempfile.TemporaryFile(dir=self.folder) as file:  # it lives on with its mapping
            return np.asarray(np.memmap(file, dtype, "w+", shape=shape))
