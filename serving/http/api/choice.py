"""One text of an answer, put together from the batch's events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftgym.decoding.text.stops import StopReason
from draftgym.decoding.text.stream import TextStream
from draftgym.serving.batching.requests import (
    Event,
    Failed,
    Finished,
    NewTokens,
    PromptRead,
    TextStatistics,
    TokenLogprob,
)
from draftgym.serving.http.api.asking import Asked
from draftgym.serving.http.encoding import Encoding
from draftgym.serving.http.errors import ApiError


@dataclass(frozen=True)
class Piece:
    """What a token added to the text.

    Attributes:
        text: The text; nothing where it is held back, or was held back before.
        drafted: Whether a drafter wrote the token.
    """

    text: str
    drafted: bool


@dataclass(frozen=True)
class Delta:
    """What an event added to a text.

    Attributes:
        pieces: Token by token.
        logprobs: Of the tokens, where they were asked for.
        arm: What drafted them.
        finished: Whether nothing follows.
    """

    pieces: Sequence[Piece] = ()
    logprobs: Sequence[TokenLogprob] = ()
    arm: str | None = None
    finished: bool = False

    @property
    def text(self) -> str:
        """What is shown."""
        return "".join(piece.text for piece in self.pieces)


class Choice:
    """A text of an answer.

    Args:
        index: Which of the answer.
        asked: What it was asked for.
        encoding: Tokens to text.

    Attributes:
        text: What is settled.
        prompt_logprobs: Of the prompt's tokens but the first.
        tokens: So many were written.
        finish_reason: Why it ended; None before.
        stop_reason: The token or string that ended it, but for the target's own end.
        statistics: How it came about, when it has ended.
    """

    def __init__(self, index: int, asked: Asked, encoding: Encoding) -> None:
        self.index, self.asked, self.encoding = index, asked, encoding
        request, target = asked.request, encoding.target
        self._ends = frozenset() if request.stops.ignore_eos else target.stop_tokens
        self._silent = self._ends | frozenset(request.stops.token_ids)
        self._settled: list[str] = []
        self._stream = TextStream(target.decode, self._settled.append, request.stops)
        self.text, self.tokens = "", 0
        self.prompt_logprobs: Sequence[TokenLogprob] = ()
        self.finish_reason: str | None = None
        self.stop_reason: StopReason | None = None
        self.statistics: TextStatistics | None = None

    def take(self, event: Event) -> Delta:
        """Takes an event in.

        Raises:
            ApiError: The text failed.
        """
        if isinstance(event, PromptRead):
            self.prompt_logprobs = event.logprobs
            return Delta()
        if isinstance(event, NewTokens):
            self.tokens += len(event.tokens)
            pieces = [
                Piece(self._shown_of(token), at < event.accepted)
                for at, token in enumerate(event.tokens)
            ]
            return Delta(pieces, event.logprobs, event.arm)
        if isinstance(event, Finished):
            return self._finish(event)
        raise failure(event)

    def _shown_of(self, token: int) -> str:
        if token in self._silent:  # it ends the text, and is no part of it
            return ""
        self._stream.add([token])
        return self._take_settled()

    def _finish(self, event: Finished) -> Delta:
        self._stream.close()
        rest = self._take_settled()
        self.finish_reason, self.statistics = event.reason, event.statistics
        self.stop_reason = None if event.stop_reason in self._ends else event.stop_reason
        return Delta([Piece(rest, False)] if rest else [], finished=True)

    def _take_settled(self) -> str:
        piece = "".join(self._settled)
        self._settled.clear()
        self.text += piece
        return piece


def failure(event: Failed) -> ApiError:
    """The answer to a text that failed."""
    if event.is_ours:
        return ApiError(500, "the model failed to write this text; its log says why")
    return ApiError(400, event.problem)
