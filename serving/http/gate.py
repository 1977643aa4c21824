"""What every request passes first: API keys, whether the server takes any, and the body's size."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from draftgym.serving.http.errors import ApiError, answer_to
from draftgym.serving.http.service import Service

OPEN = ("/", "/health")
"""Nobody needs a key for these, nor for what the page loads."""

READ_ON = 16
"""So many times the largest body is read of one that is too large."""


class Gate:
    """Refuses what shall not reach the app, and counts what does.

    Args:
        app: What is behind it.
        service: What it knows.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers an error, or lets the app answer."""
        open_to_all = scope["type"] != "http" or scope["path"] in OPEN
        if open_to_all or scope["path"].startswith("/page/"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope["method"], headers)
        except ApiError as error:
            if b"expect" not in headers:  # who waits to be let has not sent anything
                await self._discard(receive)
            await answer_to(error)(scope, receive, send)
            return
        self._service.active += 1
        try:
            await self._app(scope, self._bounded(receive), send)
        finally:
            self._service.active -= 1

    def _check(self, method: str, headers: Mapping[bytes, str]) -> None:
        self._service.check_key(headers.get(b"authorization", ""))
        if method == "POST":
            self._service.check_open()
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length) > self._service.limits.most_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """The client's messages, as long as its body is no larger than it may be."""
        read = 0

        async def next_message() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._service.limits.most_bytes:
                if message.get("more_body"):
                    await self._discard(receive)
                raise self._too_large()
            return message

        return next_message

    async def _discard(self, receive: Receive) -> None:
        """Reads on, within bounds: a client that is still sending would not see its answer."""
        left = READ_ON * self._service.limits.most_bytes
        more = True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    def _too_large(self) -> ApiError:
        most = self._service.limits.most_bytes
        message = f"the request's body is larger than {most} bytes; send less at once"
        return ApiError(413, message, headers={"Connection": "close"})
