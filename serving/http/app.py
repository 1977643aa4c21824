"""The app: OpenAI's endpoints, those that others' servers added to them, and the page."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from draftgym import __version__
from draftgym.serving.http.api.answers import Answer, Shape
from draftgym.serving.http.api.asking import Asked, asked_of_chat, asked_of_completion
from draftgym.serving.http.api.chat import ChatShape
from draftgym.serving.http.api.completions import CompletionShape
from draftgym.serving.http.api.schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TextBody,
    TokenizeBody,
)
from draftgym.serving.http.api.streams import respond
from draftgym.serving.http.api.texts import Texts
from draftgym.serving.http.api.tokenizing import detokenize, tokenize, tokenizer_info
from draftgym.serving.http.errors import ErrorAnswer, Json, add_error_handlers
from draftgym.serving.http.gate import Gate
from draftgym.serving.http.page import add_page
from draftgym.serving.http.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is wrong; the error says how."},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot serve it now."},
}
STREAMED: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {
        "description": "The answer, or with stream: true its chunks.",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
}
METRICS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}},
}


def make_app(service: Service) -> FastAPI:
    """The app of a service, which may still be loading its model."""
    app = FastAPI(
        title="draftgym",
        version=__version__,
        description="An OpenAI-compatible server that decodes speculatively.",
        docs_url=None,  # it loads scripts from a foreign host; /openapi.json has it all
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Json,
    )
    app.add_middleware(Gate, service=service)
    add_error_handlers(app)
    _add_texts(app, service)
    _add_models(app, service)
    _add_tokens(app, service)
    _add_metrics(app, service)
    add_page(app)
    return app


def _add_texts(app: FastAPI, service: Service) -> None:
    async def answer(
        asked: list[Asked], body: TextBody, shape: Shape, request: Request
    ) -> Response:
        texts = Texts(service.model.batcher, [one.request for one in asked])
        return await respond(Answer(service, body, asked, texts, shape), request)

    @app.post("/v1/completions", responses=STREAMED, response_model=None)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Goes on with texts or token ids."""
        asked = await asked_of_completion(service, body)
        return await answer(asked, body, CompletionShape(), request)

    @app.post("/v1/chat/completions", responses=STREAMED, response_model=None)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answers a chat."""
        asked = await asked_of_chat(service, body)
        return await answer(asked, body, ChatShape(), request)


def _add_models(app: FastAPI, service: Service) -> None:
    def facts() -> dict[str, Any]:
        model = service.model
        own = {"policies": model.policies.names, "default_policy": model.policies.names[0]}
        return {
            "id": service.name,
            "object": "model",
            "created": service.created,
            "owned_by": "draftgym",
            "max_model_len": model.target.context_limit,
            "draftgym": own,
        }

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [facts()]}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        """A model by its id."""
        service.check_model(name)
        return facts()

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses=ERRORS)
    async def health() -> dict[str, Any]:
        """Whether new requests are taken."""
        service.check_open()
        return {"status": "ready"}


def _add_metrics(app: FastAPI, service: Service) -> None:
    @app.get("/metrics", responses=METRICS, response_class=Response)
    async def metrics() -> Response:
        """Counters, gauges and histograms for Prometheus."""
        text, kind = service.metrics.exposition()
        return Response(text, headers={"Content-Type": kind})


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", responses=ERRORS)
    async def tokenize_(body: TokenizeBody) -> dict[str, Any]:
        """Token ids of a prompt or a chat."""
        return await tokenize(service, body)

    @app.post("/detokenize", responses=ERRORS)
    async def detokenize_(body: DetokenizeBody) -> dict[str, Any]:
        """The text of token ids."""
        return detokenize(service, body)

    @app.get("/tokenizer_info", responses=ERRORS)
    async def tokenizer_info_() -> dict[str, Any]:
        """The tokenizer's special tokens and chat template."""
        return tokenizer_info(service)
