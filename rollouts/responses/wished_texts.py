"""The texts that `draftgym ask` has written, kept in the Parquet shards of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from draftgym.drafters.training.data.corpus import described_schema
from draftgym.rollouts.traces.shards import shards_in


class Wished(NamedTuple):
    """A text to write: the how-manieth of what."""

    number: int
    wish: str

    @property
    def name(self) -> str:
        """Its id within a run of one seed."""
        return f"{self.wish}-{self.number}"


class Written(NamedTuple):
    """A text that may make a prompt, and whether its writer came to an end."""

    text: str
    ended: bool


def wished(wishes: Sequence[str], texts: int) -> list[Wished]:
    """What to write, dealt out in turn: more texts begin with the fewer ones."""
    counts: Counter[str] = Counter()
    made = []
    for index in range(texts):
        wish = wishes[index % len(wishes)]
        made.append(Wished(counts[wish], wish))
        counts[wish] += 1
    return made


def text_table(texts: Sequence[tuple[Wished, Written]], metadata: dict[str, Any]) -> Any:
    """A shard's table; `metadata` says where the texts come from."""
    import pyarrow

    columns = {
        "number": pyarrow.int64(),
        "wish": pyarrow.string(),
        "text": pyarrow.string(),
        "ended": pyarrow.bool_(),
    }
    rows = [{**one._asdict(), **text._asdict()} for one, text in texts]
    return pyarrow.Table.from_pylist(rows, described_schema(columns, metadata))


def read_texts(folder: Path) -> dict[Wished, Written]:
    """The texts that are there."""
    import pyarrow.parquet

    return {
        Wished(row["number"], row["wish"]): Written(row["text"], row["ended"])
        for shard in shards_in(folder)
        for row in pyarrow.parquet.read_table(shard).to_pylist()
    }
