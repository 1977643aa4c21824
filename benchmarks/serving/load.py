"""Concurrent clients of an OpenAI-compatible server, and what each of them waits for.

    $ python -m benchmarks.serving.load --url http://127.0.0.1:8000 --clients 4

The loop is closed: a client sends its next request when its last answer is complete. Every request
streams, so that the first token can be told from the others, and its text is kept: a fast server
that writes something else is no faster.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
import tyro

from benchmarks.report import Json, Table, number, show
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.rollouts.prompts.sets import Prompt, interleave_categories, load_prompts

PATIENCE = 900.0
"""Seconds that a client waits for the next piece of an answer."""


@dataclass(frozen=True)
class Request:
    """One request of a client.

    Attributes:
        name: Of its prompt, by which answers are compared.
        body: What is posted.
        path: Where to.
    """

    name: str
    body: Mapping[str, Any]
    path: str = "/v1/chat/completions"


@dataclass
class Answer:
    """What came back.

    Attributes:
        name: Of the request.
        status: Of HTTP; 0 where the connection broke.
        text: The text.
        tokens: As the server counts them; where it does not tell, pieces of text.
        prompt_tokens: As the server counts them, if it tells.
        accepted: Tokens of them that had been drafted, if the server tells.
        first_seconds: From sending to the first piece of text.
        seconds: From sending to the end.
        finish_reason: Why the text ended; None where it did not.
        problem: Why there is no text, in the server's words.
    """

    name: str
    status: int = 0
    text: str = ""
    tokens: int = 0
    prompt_tokens: int | None = None
    accepted: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0
    finish_reason: str | None = None
    problem: str = ""

    @property
    def complete(self) -> bool:
        """Whether the whole text is there."""
        return self.finish_reason is not None and not self.problem

    @property
    def seconds_per_token(self) -> float | None:
        """Of the tokens after the first; None where there is none."""
        if self.tokens < 2:
            return None
        return (self.seconds - self.first_seconds) / (self.tokens - 1)


def chat_request(prompt: Prompt, max_tokens: int, model: str, **fields: Any) -> Request:
    """Asks for the likeliest answer to a prompt's first turn.

    Args:
        prompt: The prompt.
        max_tokens: Tokens to write at most.
        model: What the server calls its model.
        **fields: Further ones, such as `draftgym`; servers differ in which they take.
    """
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    body = {
        "model": model,
        "messages": [*system, {"role": "user", "content": prompt.turns[0]}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    return Request(prompt.question_id, body)


async def ask(client: httpx2.AsyncClient, request: Request) -> Answer:
    """Sends a request that streams and reads its answer to the end; raises nothing."""
    answer, pieces, start = Answer(request.name), 0, time.perf_counter()
    try:
        async with client.stream("POST", request.path, json=dict(request.body)) as response:
            answer.status = response.status_code
            if response.status_code != 200:
                answer.problem = (await response.aread()).decode(errors="replace")
            async for line in response.aiter_lines():
                if (chunk := event_of(line)) is None:
                    continue
                piece = _take(answer, chunk)
                if piece and not pieces:
                    answer.first_seconds = time.perf_counter() - start
                pieces += bool(piece)
    except httpx2.HTTPError as error:
        answer.problem = repr(error)
    except httpx2.StreamError:  # an error's body, which has been read
        pass
    answer.seconds = time.perf_counter() - start
    answer.tokens = answer.tokens or pieces
    if answer.finish_reason is None and not answer.problem:
        answer.problem = "the stream ended before its text did"
    return answer


def event_of(line: str) -> dict[str, Any] | None:
    """What a line of a stream of events tells; None for pings, empty lines and the end."""
    if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
        return None
    event: dict[str, Any] = json.loads(data)
    return event


def _take(answer: Answer, chunk: Mapping[str, Any]) -> str:
    """Adds a chunk of a stream to the answer; its piece of text."""
    if error := chunk.get("error"):
        answer.problem = json.dumps(error)
    if usage := chunk.get("usage"):
        answer.tokens, answer.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        details = usage.get("completion_tokens_details") or {}
        answer.accepted = details.get("accepted_prediction_tokens") or 0
    piece = ""
    for choice in chunk.get("choices", [])[:1]:
        piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    answer.text += piece
    return piece


def run_clients(url: str, requests: Sequence[Request], clients: int) -> tuple[list[Answer], float]:
    """Answers to all requests, in their order, and the seconds that all took together.

    Args:
        url: The server's, without `/v1`.
        requests: Clients take them in this order, each the next one as soon as it is free.
        clients: How many at the same time.
    """
    answers: list[Answer | None] = [None] * len(requests)

    async def work(http: httpx2.AsyncClient, queue: Iterator[tuple[int, Request]]) -> None:
        for place, request in queue:
            answers[place] = await ask(http, request)

    async def all_clients() -> float:
        limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
        queue = iter(enumerate(requests))
        async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as http:
            start = time.perf_counter()
            await asyncio.gather(*(work(http, queue) for _ in range(clients)))
            return time.perf_counter() - start

    seconds = asyncio.run(all_clients())
    return [answer for answer in answers if answer is not None], seconds


def summarise(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Figures of a run: goodput, waiting for the first token, seconds per further token.

    Args:
        answers: What came back.
        seconds: That all took together.
    """
    whole = [answer for answer in answers if answer.complete]
    per_token = [one for answer in whole if (one := answer.seconds_per_token) is not None]
    tokens = sum(answer.tokens for answer in whole)
    return {
        "requests": len(answers),
        "failed": len(answers) - len(whole),
        "tokens": tokens,
        "accepted": sum(answer.accepted for answer in whole),
        "seconds": seconds,
        "goodput": tokens / seconds,
        "first_token_ms": spread([answer.first_seconds for answer in whole]),
        "per_token_ms": spread(per_token),
    }


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and 95th percentile in milliseconds; None of nothing."""
    if not seconds:
        return None
    p50, p95 = (1e3 * np.percentile(seconds, [50, 95])).tolist()
    return {"p50": p50, "p95": p95}


def spread_cell(key: str, form: str = ".0f") -> Any:
    """A cell with median and 95th percentile of a row's figure."""

    def tell(row: Json) -> str:
        one = row[key]
        return "" if one is None else f"{one['p50']:{form}} / {one['p95']:{form}}"

    return tell


FIGURES = {
    "requests": number("requests", ""),
    "failed": number("failed", ""),
    "tokens/s": number("goodput", ".1f"),
    "first token, ms": spread_cell("first_token_ms"),
    "per token, ms": spread_cell("per_token_ms", ".1f"),
}
"""Columns of tables; two figures are p50 / p95."""


@dataclass(frozen=True, kw_only=True)
class LoadArgs:
    """What is sent, and how much at once.

    Attributes:
        url: The server's, without /v1.
        clients: How many at the same time.
        prompts: train or heldout (shipped sets), or a JSON-lines file.
        per_category: Prompts of each category.
        max_new_tokens: Tokens per text at most.
        model: What the server calls its model.
        policy: Asked of draftgym's server with every request; other servers may refuse it.
    """

    url: str = "http://127.0.0.1:8000"
    clients: int = 4
    prompts: str = "train"
    per_category: int = 4
    max_new_tokens: int = 64
    model: str = "smollm2-135m"
    policy: str | None = None


def main(args: LoadArgs) -> None:
    """Sends it and shows the table.

    Raises:
        DraftgymError: Not one answer is complete.
    """
    prompts = interleave_categories(
        load_prompts(args.prompts, limit_per_category=args.per_category)
    )
    fields = {"draftgym": {"policy": args.policy}} if args.policy else {}
    requests = [chat_request(one, args.max_new_tokens, args.model, **fields) for one in prompts]
    answers, seconds = run_clients(args.url, requests, args.clients)
    if not any(answer.complete for answer in answers):
        raise DraftgymError(
            f"no answer is complete: {answers[0].problem}", "see what the server says"
        )
    show(
        [Table.of(f"{args.clients} clients of {args.url}", [summarise(answers, seconds)], FIGURES)]
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(LoadArgs, description=__doc__))
