"""Mixed requests, and the texts that plain decoding writes for each of them alone.

Whatever a server does with a request beside others, its text must be the one of `Wish.expected`:
a wish says what is written, a `Delivery` how it is asked for (streamed, drafted by whom, left in
the middle), which changes no text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import torch

from benchmarks.serving.load import event_of
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.model.target import Target
from draftgym.decoding.text.stops import Stops
from draftgym.decoding.verify.sampling import SamplingSettings
from draftgym.serving.http.api.asking import seed_of_choice

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SHARED = ("You are a helpful assistant. Answer in one short sentence. ", "Be brief. ")
"""What many prompts begin with."""
SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.2},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.9},
    {},  # the API's own temperature, 1
    {"temperature": 1.4, "min_p": 0.05},
)


@dataclass(frozen=True)
class Wish:
    """A text that is wanted, or several choices of it.

    Attributes:
        path: Where it is asked for.
        body: What is written, as a request says it.
        expected: What plain decoding writes: a text for each choice.
    """

    path: str
    body: Mapping[str, Any]
    expected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delivery:
    """A wish as somebody asks for it.

    Attributes:
        wish: The wish.
        fields: Of the request, beside the wish's own.
        leave_after: Pieces of text after which the client leaves; None for one that stays.
    """

    wish: Wish
    fields: Mapping[str, Any] = field(default_factory=dict)
    leave_after: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """What is posted."""
        return {**self.wish.body, **self.fields}


@dataclass
class Outcome:
    """How a delivery ended.

    Attributes:
        delivery: Which.
        status: Of HTTP; 0 where the connection broke.
        texts: By choice, as far as they came.
        reasons: Why they ended, by choice.
        error: In the server's words, or the client's.
        left: Whether the client left.
    """

    delivery: Delivery
    status: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    error: str = ""
    left: bool = False

    @property
    def verdict(self) -> str:
        """`right`, `left`, `busy` (refused for now, as the API has it), `wrong` or `lost`."""
        expected = dict(enumerate(self.delivery.wish.expected))
        if any(not expected.get(at, "").startswith(text) for at, text in self.texts.items()):
            return "wrong"
        if self.left:
            return "left"
        if self.status in (429, 503) and is_api_error(self.error):
            return "busy"
        if self.status != 200 or self.error or self.reasons.keys() != expected.keys():
            return "lost"
        return "right" if self.texts == expected else "wrong"


def make_wishes(
    target: Target, prompts: Sequence[str], count: int, longest: int, seed: int = 0
) -> Iterator[Wish]:
    """Draws wishes of all kinds, with what plain decoding writes for each.

    Args:
        target: Who writes, in float32.
        prompts: What they are about.
        count: How many.
        longest: Most tokens of a text.
        seed: Of the draws.
    """
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        said = _chat(rng, prompts) if rng.random() < 0.6 else _completion(rng, prompts, target)
        body = {**said, **rng.choice(SETTINGS), "seed": rng.randrange(2**31)}
        body["max_tokens"] = rng.randint(1, longest)
        if rng.random() < 0.2:
            body["n"] = rng.randint(2, 3)
        wish = expected_of(target, Wish(CHAT if "messages" in said else COMPLETIONS, body))
        if rng.random() < 0.3 and (stops := _stops(rng, wish.expected[0])):
            wish = expected_of(target, replace(wish, body={**body, "stop": stops}))
        yield wish


def expected_of(target: Target, wish: Wish) -> Wish:
    """The wish with what plain decoding writes for it, alone."""
    body, plain = wish.body, SpeculativeDecoder(target, {}, PlainPolicy())
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    sampling = SamplingSettings(**{name: body[name] for name in names if name in body})
    stops = Stops(strings=tuple(body.get("stop", ())))
    texts = []
    for choice in range(body.get("n", 1)):
        written = plain.generate(
            _tokens(target, body),
            max_new_tokens=body["max_tokens"],
            temperature=float(body.get("temperature", 1)),
            seed=seed_of_choice(body["seed"], choice),
            stops=stops,
            sampling=sampling,
        )
        texts.append(stops.cut(target.decode(written.tokens)))
    return replace(wish, expected=tuple(texts))


def _tokens(target: Target, body: Mapping[str, Any]) -> torch.Tensor:
    if "messages" in body:
        return target.encode(body["messages"])
    prompt = body["prompt"]
    if isinstance(prompt, str):
        prompt = target.tokenizer(prompt)["input_ids"]
    return torch.tensor(prompt)


def _chat(rng: random.Random, prompts: Sequence[str]) -> dict[str, Any]:
    """Messages, which often begin as others do."""
    messages = [{"role": "user", "content": rng.choice(prompts)}]
    if rng.random() < 0.5:
        messages.insert(0, {"role": "system", "content": rng.choice(SHARED)})
    if rng.random() < 0.25:
        messages.append({"role": "assistant", "content": "I see."})
        messages.append({"role": "user", "content": rng.choice(prompts)[:40]})
    return {"messages": messages}


def _completion(rng: random.Random, prompts: Sequence[str], target: Target) -> dict[str, Any]:
    """A prompt as text or as token ids."""
    prompt = rng.choice(("", *SHARED)) + rng.choice(prompts)
    return {"prompt": target.tokenizer(prompt)["input_ids"] if rng.random() < 0.5 else prompt}


def _stops(rng: random.Random, text: str) -> list[str]:
    """A piece of a text, and one that does not come."""
    if len(text) < 4:
        return []
    start = rng.randrange(1, len(text) - 1)
    return [text[start : start + rng.randint(1, 4)], "\x00never\x00"]


def draw_delivery(
    rng: random.Random, wish: Wish, policies: Sequence[str], leaving: float
) -> Delivery:
    """Draws how somebody asks for a wish.

    Args:
        rng: Draws.
        wish: The wish.
        policies: Who may draft.
        leaving: Share of clients who leave in the middle.
    """
    own: dict[str, Any] = {}
    if rng.random() < 0.8:
        own["policy"] = rng.choice(policies)
    if rng.random() < 0.3:
        own["max_draft"] = rng.choice((0, 1, 3, 64))
    fields: dict[str, Any] = {"draftgym": own, "stream": rng.random() < 0.7}
    if fields["stream"] and rng.random() < 0.5:
        fields["stream_options"] = {"include_usage": True}
    if rng.random() < 0.2:
        chat = wish.path == CHAT
        fields |= {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2}
    if wish.path == CHAT and rng.random() < 0.2:
        fields["prediction"] = {"type": "content", "content": wish.expected[0] or "nothing"}
    leave_after = None
    if rng.random() < leaving:
        fields["stream"], leave_after = True, rng.randint(0, 4)
    return Delivery(wish, fields, leave_after)


async def deliver(http: httpx2.AsyncClient, one: Delivery) -> Outcome:
    """Asks and reads, to the end or until the client leaves; raises nothing."""
    outcome, pieces = Outcome(one), 0
    try:
        async with http.stream("POST", one.wish.path, json=one.body) as response:
            outcome.status = response.status_code
            if response.status_code != 200:
                outcome.error = (await response.aread()).decode(errors="replace")
                return outcome
            if not one.body["stream"]:
                _take(outcome, json.loads(await response.aread()))
                return outcome
            outcome.left = one.leave_after == 0
            async for line in response.aiter_lines():
                if outcome.left:
                    break
                if (chunk := event_of(line)) is not None:
                    pieces += _take(outcome, chunk)
                    outcome.left = one.leave_after is not None and pieces >= one.leave_after
    except (httpx2.HTTPError, ValueError) as error:
        outcome.error = repr(error)
    return outcome


def _take(outcome: Outcome, body: Mapping[str, Any]) -> bool:
    """Adds an answer, or a chunk of one; whether text came."""
    if "error" in body:
        outcome.error = json.dumps(body)
    came = False
    for choice in body.get("choices", ()):
        at, said = choice["index"], choice.get("message") or choice.get("delta") or choice
        piece = said.get("content") or said.get("text") or ""
        outcome.texts[at] = outcome.texts.get(at, "") + piece
        if choice.get("finish_reason"):
            outcome.reasons[at] = choice["finish_reason"]
        came = came or bool(piece)
    return came


def is_api_error(body: str) -> bool:
    """Whether it is an error in the shape of OpenAI's API."""
    try:
        error = json.loads(body)["error"]
        return bool(error["message"]) and {"type", "param", "code"} <= error.keys()
    except (KeyError, TypeError, ValueError):
        return False
