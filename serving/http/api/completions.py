"""The shape of `/v1/completions`."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from draftgym.serving.batching.requests import TokenLogprob
from draftgym.serving.http.api.choice import Choice, Delta

LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""


class CompletionShape:
    """Texts, with the log-probabilities of tokens as lists and dicts."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self) -> None:
        self._offsets: dict[int, Offsets] = {}

    def whole(self, choice: Choice, deltas: Sequence[Delta]) -> dict[str, Any]:
        """A finished text, behind the prompt where that is echoed."""
        logprobs = [one for delta in deltas for one in delta.logprobs]
        return {
            "index": choice.index,
            "text": (choice.asked.echo or "") + choice.text,
            "logprobs": self._logprobs(choice, self._prompt(choice), logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """The prompt, where it is echoed."""
        if choice.asked.echo is None:
            return None
        logprobs = self._logprobs(choice, self._prompt(choice), [])
        return {"text": choice.asked.echo, "logprobs": logprobs}

    def chunk(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """What was added."""
        told = self._logprobs(choice, [], delta.logprobs) if delta.logprobs else None
        return {"text": delta.text, "logprobs": told}

    def _prompt(self, choice: Choice) -> list[tuple[int, TokenLogprob | None]]:
        """The echoed tokens; nothing is known of how likely the first one is."""
        request = choice.asked.request
        if request.prompt_logprobs is None:
            return []
        ids = request.prompt.tolist()
        return [*zip(ids, [None, *choice.prompt_logprobs], strict=True)]

    def _logprobs(
        self,
        choice: Choice,
        prompt: Sequence[tuple[int, TokenLogprob | None]],
        written: Sequence[TokenLogprob],
    ) -> dict[str, Any] | None:
        if choice.asked.request.logprobs is None:
            return None
        name = choice.encoding.token
        rows = [*prompt, *((one.token, one) for one in written)]
        offsets = self._offsets.setdefault(choice.index, Offsets())
        if not prompt and not offsets.moved:
            offsets.characters = len(choice.asked.echo or "")
        return {
            "tokens": [name(token).text for token, _ in rows],
            "token_logprobs": [None if one is None else finite(one.logprob) for _, one in rows],
            "top_logprobs": [None if one is None else _top(choice, one) for _, one in rows],
            "text_offset": [offsets.of(name(token).data) for token, _ in rows],
        }


class Offsets:
    """Where each token begins in the text; one inside a character, where that ends."""

    def __init__(self) -> None:
        self.characters, self.moved = 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, data: bytes) -> int:
        """Where a token begins."""
        begins, self.moved = self.characters, True
        self.characters += len(self._decoder.decode(data))
        return begins


def _top(choice: Choice, one: TokenLogprob) -> dict[str, float]:
    """Alternatives and the token itself; of two that are written alike, the likelier one."""
    top: dict[str, float] = {}
    rows = [*one.top, (one.token, one.logprob)]
    for token, logprob in sorted(rows, key=lambda row: -row[1]):
        top.setdefault(choice.encoding.token(token).text, finite(logprob))
    return top


def finite(logprob: float) -> float:
    """A log-probability as JSON can hold it."""
    return max(float(logprob), LEAST_LOGPROB)
