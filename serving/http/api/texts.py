"""The texts of one request, from the batch's thread to the web side, and back when a client leaves.

Events arrive on the batch's thread and are handed to the loop; the web side never waits for the
model, and the model never for a client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from starlette.types import Receive

from draftgym.serving.batching.batcher import Batcher
from draftgym.serving.batching.requests import Event, Failed, Finished, TextRequest


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Texts:
    """Texts that are written for one client.

    Args:
        batcher: Who writes them.
        requests: What is asked for.
    """

    def __init__(self, batcher: Batcher, requests: Sequence[TextRequest]) -> None:
        self._batcher, self._requests = batcher, requests
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
        self._running: dict[int, int] = {}  # the batch's numbers by ours

    def submit(self) -> None:
        """Puts all into the batch's queue, or none.

        Raises:
            DraftgymError: One can never be served.
            QueueFull: They do not all find a place.
        """
        try:
            for index, request in enumerate(self._requests):
                self._running[index] = self._batcher.submit(request, partial(self._hear, index))
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Forgets the texts that are not finished: their places are free within a round."""
        for number in self._running.values():
            self._batcher.cancel(number)
        self._running.clear()

    async def next(self, patience: float | None = None) -> tuple[int, Event] | None:
        """The next event, with the index of its text; None after so many seconds without any.

        Raises:
            ClientGone: The client has left.
        """
        try:
            async with asyncio.timeout(patience):
                heard = await self._events.get()
        except TimeoutError:
            return None
        if heard is None:
            raise ClientGone
        if isinstance(heard[1], Finished | Failed):
            self._running.pop(heard[0], None)
        return heard

    @asynccontextmanager
    async def watched(self, receive: Receive) -> AsyncIterator[None]:
        """Within, `next` raises as soon as the client leaves; behind, nothing is written on.

        Args:
            receive: What the client sends; its request has been read.
        """
        watcher = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            watcher.cancel()
            self.leave()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._events.put_nowait(None)

    def _hear(self, index: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
