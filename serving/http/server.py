"""uvicorn, told when to end: a first signal lets running requests end, a second one does not."""

from __future__ import annotations

import errno
import socket
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from draftgym.decoding.errors import DraftgymError
from draftgym.serving.http.service import Phase, Service

KEEP_ALIVE = 65
"""Seconds for which a connection without a request stays open: more than clients' own."""


class Server(uvicorn.Server):
    """Serves an app until a signal, and the requests that run then to their end.

    While they run, new requests get 503. A second signal, or the time limit, ends at once.

    Args:
        app: The app.
        service: Whose requests they are.
        patience: Seconds for which running requests are waited for.
        access_log: Whether every request has a line.
    """

    def __init__(
        self, app: ASGIApp, service: Service, patience: float, access_log: bool = False
    ) -> None:
        level = "info" if access_log else "warning"
        config = uvicorn.Config(
            app,
            log_level=level,
            access_log=access_log,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,  # behind ours
        )
        super().__init__(config)
        self.service, self.patience = service, patience
        self._ends = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes no more requests; the second time waits for none."""
        if self.service.phase is Phase.DRAINING:
            self.should_exit = self.force_exit = True
        else:
            self.service.phase = Phase.DRAINING
            self._ends = time.monotonic() + self.patience

    async def on_tick(self, counter: int) -> bool:
        """Whether to end."""
        over = await super().on_tick(counter)
        if self.service.phase is Phase.DRAINING:
            too_long = time.monotonic() > self._ends
            self.force_exit |= too_long
            over |= too_long or not self.service.active
        return over


def listen(host: str, port: int) -> socket.socket:
    """Takes a port; clients may connect from now on.

    Raises:
        DraftgymError: It is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # asyncio does so with its own sockets alone; else an answer waits 40 ms for the last one's
        # acknowledgement, and so does each token of a stream.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        remedy = "check --host and --port"
        if error.errno == errno.EADDRINUSE:
            remedy = (
                "end the program that has it (another server?), or choose another one with --port "
                "(0 takes any that is free)"
            )
        problem = f"cannot listen on {host}, port {port}: {error.strerror or error}"
        raise DraftgymError(problem, remedy) from error
    except OverflowError as error:
        raise DraftgymError(f"--port is {port}", "give a number from 0 to 65535") from error


def address_of(listener: socket.socket) -> str:
    """Where a client on this host finds it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
