"""Answers: a request's texts as one JSON object, or as chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from draftgym.serving.batching.requests import PromptRead
from draftgym.serving.http.api.asking import Asked
from draftgym.serving.http.api.choice import Choice, Delta
from draftgym.serving.http.api.schema import TextBody
from draftgym.serving.http.api.statistics import details_of, metrics_of, usage_of
from draftgym.serving.http.api.texts import Texts
from draftgym.serving.http.service import Service


class Shape(Protocol):
    """How an endpoint writes texts.

    Attributes:
        prefix: Of the answers' ids.
        kind: Of whole answers.
        chunk_kind: Of chunks.
    """

    prefix: str
    kind: str
    chunk_kind: str

    def whole(self, choice: Choice, deltas: Sequence[Delta]) -> dict[str, Any]:
        """A finished text."""

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """What a stream says before a text's first token, if anything."""

    def chunk(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """What was added to a text."""


@dataclass(eq=False)
class Answer:
    """An answer that is being written.

    Attributes:
        service: Who answers.
        body: What was asked.
        asked: Its texts.
        texts: Where their events come from.
        shape: How they are written.
    """

    service: Service
    body: TextBody
    asked: Sequence[Asked]
    texts: Texts
    shape: Shape

    def __post_init__(self) -> None:
        encoding = self.service.model.encoding
        self.choices = [Choice(at, one, encoding) for at, one in enumerate(self.asked)]
        self._id = f"{self.shape.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    async def whole(self) -> dict[str, Any]:
        """The answer, when all of its texts are finished.

        Raises:
            ApiError: One failed.
            ClientGone: Nobody waits for it.
        """
        deltas: list[list[Delta]] = [[] for _ in self.choices]
        unfinished = len(self.choices)
        while unfinished:
            heard = await self.texts.next(self.service.limits.ping_seconds)
            if heard is None:
                self.service.check_alive()
                continue
            delta = self.choices[heard[0]].take(heard[1])
            deltas[heard[0]].append(delta)
            unfinished -= delta.finished
        choices = []
        for choice, parts in zip(self.choices, deltas, strict=True):
            told = self.shape.whole(choice, parts)
            if self.body.own.details:
                told["draftgym"] = {"rounds": [_round_of(one) for one in parts if one.pieces]}
            choices.append(told)
        answer = self._head(self.shape.kind) | {"choices": choices}
        return answer | {"usage": usage_of(self.choices)} | self._extras()

    async def chunks(self) -> AsyncIterator[dict[str, Any] | None]:
        """Chunks of a stream; None after a while without any.

        Raises:
            ApiError: A text failed.
            ClientGone: Nobody waits for it.
        """
        unfinished, opened = len(self.choices), set[int]()
        while unfinished:
            heard = await self.texts.next(self.service.limits.ping_seconds)
            if heard is None:
                self.service.check_alive()
                yield None
                continue
            index, event = heard
            choice = self.choices[index]
            delta = choice.take(event)
            if index not in opened:
                opened.add(index)
                if (opening := self.shape.opening(choice)) is not None:
                    yield self._chunk(opening, choice, Delta())
            unfinished -= delta.finished
            if self._tells(delta) and not isinstance(event, PromptRead):
                yield self._chunk(self.shape.chunk(choice, delta), choice, delta)
        options = self.body.stream_options
        if options is not None and (options.include_usage or options.continuous_usage_stats):
            last = self._head(self.shape.chunk_kind) | {"choices": []}
            yield last | {"usage": usage_of(self.choices)} | self._extras()

    def _tells(self, delta: Delta) -> bool:
        """Whether a client misses something without the chunk."""
        return bool(
            delta.text or delta.finished or delta.logprobs or (self.body.own.details and delta.arm)
        )

    def _chunk(self, told: dict[str, Any], choice: Choice, delta: Delta) -> dict[str, Any]:
        told = {"index": choice.index, **told, "finish_reason": None}
        if delta.finished:
            told |= {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        chunk = self._head(self.shape.chunk_kind) | {"choices": [told]}
        options = self.body.stream_options
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = usage_of(self.choices)
        elif options is not None and options.include_usage:
            chunk["usage"] = None
        if self.body.own.details:
            chunk["draftgym"] = _round_of(delta) if delta.pieces else {}
            if delta.finished:
                chunk["draftgym"] |= details_of([choice])
        return chunk

    def _head(self, kind: str) -> dict[str, Any]:
        service = self.service
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": service.name,
            "system_fingerprint": f"fp_{service.model.target.fingerprint[:12]}",
        }

    def _extras(self) -> dict[str, Any]:
        """What vLLM's clients read of a whole answer, and what ours do."""
        extras: dict[str, Any] = {"metrics": metrics_of(self.choices)}
        if self.body.own.details:
            extras["draftgym"] = details_of(self.choices)
        return extras


def _round_of(delta: Delta) -> dict[str, Any]:
    pieces = [{"text": one.text, "drafted": one.drafted} for one in delta.pieces]
    return {"arm": delta.arm or "plain", "pieces": pieces}
