"""A server that says what a test wrote down: for what real ones do seldom, or too fast."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from draftgym.serving.http.page import add_page
from draftgym.serving.http.server import address_of, listen

Round = tuple[str, Sequence[tuple[str, bool]]]
"""An arm, and the texts of its tokens, each with whether it was drafted."""


@dataclass
class Script:
    """What the server does.

    Attributes:
        texts: Rounds by policy.
        refusals: Status and message of the next answers, whatever is asked for.
        held_back: Text that no token brings, told with the end.
        held: Texts stop behind their first round until this is set.
        asked: Bodies of the requests for a text.
        keys: What each request gave as authorisation.
        left: Set when a reader leaves before the text ends.
    """

    texts: dict[str, Sequence[Round]]
    refusals: list[tuple[int, str]] = field(default_factory=list)
    held_back: str = ""
    held: threading.Event = field(default_factory=threading.Event)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    def app(self) -> FastAPI:
        """The server."""
        app = FastAPI(openapi_url=None)
        add_page(app)

        @app.get("/v1/models")
        def models(request: Request) -> JSONResponse:
            policies = {"policies": list(self.texts), "default_policy": next(iter(self.texts))}
            return self._refusal(request) or JSONResponse(
                {"data": [{"id": "scripted", "draftgym": policies}]}
            )

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            if refusal := self._refusal(request):
                return refusal
            self.asked.append(await request.json())
            return StreamingResponse(self._events(self.asked[-1]), media_type="text/event-stream")

        return app

    def _refusal(self, request: Request) -> JSONResponse | None:
        self.keys.append(request.headers.get("authorization"))
        if not self.refusals:
            return None
        status, message = self.refusals.pop(0)
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"error": {"message": message}}, status, headers)

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        arms: dict[str, int] = {}
        ended = False
        try:
            yield ": the prompt is being read\n\n"
            for number, (arm, tokens) in enumerate(self.texts[body["draftgym"]["policy"]]):
                while number and not self.held.is_set():
                    await asyncio.sleep(0.01)
                arms[arm] = arms.get(arm, 0) + 1
                pieces = [{"text": text, "drafted": drafted} for text, drafted in tokens]
                content = "".join(text for text, _ in tokens)
                choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
                yield _event({"choices": [choice], "draftgym": {"arm": arm, "pieces": pieces}})
            rest = [{"text": self.held_back, "drafted": False}] if self.held_back else []
            last = {"arm": "plain", "pieces": rest}
            choice = {"index": 0, "delta": {"content": self.held_back}, "finish_reason": "length"}
            yield _event({"choices": [choice], "draftgym": last})
            yield _event({"choices": [], "usage": {}, "draftgym": {"arms": arms}})
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.left.set()


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of a server, on a free port of this machine, until the block ends."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield address_of(listener)
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
