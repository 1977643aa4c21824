"""Shards: what a worker writes in one go, into one file, and what decides who writes what.

A shard's texts are written together and by nobody else, so that its bytes depend on its requests
alone. Whoever writes them, wherever, a folder becomes the same, file by file.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_text

if TYPE_CHECKING:  # torch is loaded by workers that need it
    from draftgym.rollouts.decode.batched import Request

Told = Callable[[int], None]
"""Is told of every finished text: tokens or positions in it."""


@dataclass(frozen=True)
class Shard:
    """Texts of one file.

    Attributes:
        number: Of the file.
        requests: What to write.
    """

    number: int
    requests: tuple[Request, ...]

    def __str__(self) -> str:
        first = ", ".join(repr(one.question_id) for one in self.requests[:3])
        more = f" and {len(self.requests) - 3} more" if len(self.requests) > 3 else ""
        return f"shard {self.number} (questions {first}{more})"


class Amount(NamedTuple):
    """What a shard holds: texts, and tokens or positions in them."""

    texts: int
    units: int


class Worker(Protocol):
    """Holds models and writes shards; made anew where its process died."""

    def write(self, shard: Shard, plan: Any, told: Told | None = None) -> Amount:
        """Writes a shard, if its file is not there.

        Args:
            shard: What.
            plan: What its own `plan` gave, or that of another worker.
            told: See `Told`. Without it the file appears whole or not at all; with it an interrupt
                keeps the texts that are finished.
        """


def cut_shards(
    folder: Path, wanted: Sequence[Request], missing: Iterable[Request], size: int
) -> list[Shard]:
    """What is missing in a folder, by shards.

    All that is wanted is cut into groups of `size`, so that shards are the same however often a run
    was stopped. Files that are missing between others are filled.

    Args:
        folder: Where they are to be.
        wanted: All requests.
        missing: Those whose texts are not in the folder.
        size: Texts of a shard.
    """
    from draftgym.rollouts.traces.shards import numbers_in

    left, used = {id(one) for one in missing}, numbers_in(folder)
    groups = (wanted[start : start + size] for start in range(0, len(wanted), size))
    rests = (tuple(one for one in group if id(one) in left) for group in groups)
    free = (number for number in count() if number not in used)
    return [Shard(number, rest) for rest, number in zip(filter(None, rests), free, strict=False)]


@dataclass(frozen=True)
class SharedFolder:
    """A folder that workers on other machines must see, and what marks the run that it is of."""

    folder: Path
    run: str

    @classmethod
    def opened(cls, folder: Path) -> SharedFolder:
        """Marks a folder as that of a new run; earlier runs write no more into it."""
        run = secrets.token_hex(8)
        write_text(folder / ".run", run)
        return cls(folder, run)

    def check(self, where: str) -> None:
        """Raises `DraftgymError` on a machine that sees another folder, or a later run's."""
        found = ""
        with suppress(OSError):
            found = (self.folder / ".run").read_text(encoding="utf-8")
        if found != self.run:
            raise DraftgymError(
                f"a worker on {where} does not see {self.folder} as this process does",
                "name a folder with --out that all machines share, by an absolute path",
            )
