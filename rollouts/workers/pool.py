"""A pool of workers that write shards: one in this process, or many on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from draftgym.rollouts.decode.progress import Progress
from draftgym.rollouts.workers.options import WorkerOptions
from draftgym.rollouts.workers.shard import Shard, Worker


class Pool(Protocol):
    """Workers."""

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of any of them answers."""

    def write(self, shards: Sequence[Shard], plan: Any, progress: Progress) -> None:
        """Lets them write shards.

        Raises:
            DraftgymError: Anything the user can mend, or shards were given up.
        """


class OwnPool:
    """One worker, in this process."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.worker = make()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of it answers."""
        return getattr(self.worker, method)(*arguments)

    def write(self, shards: Sequence[Shard], plan: Any, progress: Progress) -> None:
        """Writes one shard after the other."""
        for shard in shards:
            self.worker.write(shard, plan, progress.add)


@contextmanager
def open_pool(make: Callable[[], Worker], options: WorkerOptions, out: Path) -> Iterator[Pool]:
    """Workers as they are asked for; those on Ray end with the block.

    Args:
        make: Makes one; on Ray it is sent to where it is to be.
        options: Who and where.
        out: The folder they write into.
    """
    if options.ray is None:
        yield OwnPool(make)
        return
    from draftgym.rollouts.workers.ray_pool import RayPool

    pool = RayPool(make, options, out)
    try:
        yield pool
    finally:
        pool.close()
