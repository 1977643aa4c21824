"""Answers over the wire: whole, or as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draftgym.serving.http.api.answers import Answer
from draftgym.serving.http.api.texts import ClientGone
from draftgym.serving.http.errors import ApiError, Json, as_json, body_of

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
LOG = logging.getLogger(__name__)


async def respond(answer: Answer, request: Request) -> Response:
    """Puts an answer's texts into the queue, and answers.

    Raises:
        DraftgymError: One can never be served.
        QueueFull: They do not all find a place.
        ApiError: One failed.
    """
    answer.texts.submit()
    if answer.body.stream:
        return EventStream(answer)
    async with answer.texts.watched(request.receive):
        try:
            return Json(await answer.whole())
        except ClientGone:
            return Response(status_code=499)  # which nobody reads


class EventStream(Response):
    """An answer as server-sent events; a client that leaves ends its texts.

    Args:
        answer: The answer, submitted.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it, until it is finished or the client leaves."""
        headers = self.raw_headers
        async with self._answer.texts.watched(receive):
            try:
                start = {"type": "http.response.start", "status": 200, "headers": headers}
                await send(start)
                async with aclosing(_events(self._answer)) as parts:
                    async for part in parts:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except (ClientGone, OSError):
                pass


async def _events(answer: Answer) -> AsyncGenerator[bytes]:
    """The answer's chunks, and where a text fails its error; the status has been sent already."""
    try:
        async for chunk in answer.chunks():
            yield PING if chunk is None else b"data: " + as_json(chunk) + b"\n\n"
    except ClientGone:
        raise
    except ApiError as error:
        yield b"data: " + as_json(body_of(error)) + b"\n\n"
    except Exception:
        LOG.exception("a stream failed")
        failed = ApiError(500, "the server failed; its log says why")
        yield b"data: " + as_json(body_of(failed)) + b"\n\n"
    yield DONE
