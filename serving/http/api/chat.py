"""The shape of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draftgym.serving.batching.requests import TokenLogprob
from draftgym.serving.http.api.choice import Choice, Delta
from draftgym.serving.http.api.completions import finite


class ChatShape:
    """Messages of the assistant, with the log-probabilities of tokens as objects."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def whole(self, choice: Choice, deltas: Sequence[Delta]) -> dict[str, Any]:
        """A finished message."""
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": _logprobs(choice, [one for delta in deltas for one in delta.logprobs]),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """Who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"delta": delta, "logprobs": None}

    def chunk(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """What was added."""
        told = _logprobs(choice, delta.logprobs) if delta.logprobs else None
        return {"delta": {"content": delta.text} if delta.text else {}, "logprobs": told}


def _logprobs(choice: Choice, written: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if choice.asked.request.logprobs is None:
        return None
    told = []
    for one in written:
        top = [_token(choice, *row) for row in one.top]
        told.append(_token(choice, one.token, one.logprob) | {"top_logprobs": top})
    return {"content": told, "refusal": None}


def _token(choice: Choice, token: int, logprob: float) -> dict[str, Any]:
    known = choice.encoding.token(token)
    return {"token": known.text, "logprob": finite(logprob), "bytes": [*known.data]}
