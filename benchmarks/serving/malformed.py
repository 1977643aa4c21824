"""Requests that no server can serve, and what a proper answer to them is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from benchmarks.serving.mixed import CHAT, COMPLETIONS, is_api_error

OVERSIZE_NAME = "oversize"
OVERSIZE = 64 << 20
"""Bytes of the body that is far too large."""


@dataclass(frozen=True)
class Malformed:
    """A request that cannot be served.

    Attributes:
        name: What is wrong with it.
        path: Where it goes.
        content: Its body.
    """

    name: str
    path: str
    content: bytes


def _chat(name: str, body: Mapping[str, Any]) -> Malformed:
    said = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    return Malformed(name, CHAT, json.dumps({**said, **body}).encode())


def _completion(name: str, body: Mapping[str, Any]) -> Malformed:
    said = {"prompt": "Hello", "max_tokens": 4}
    return Malformed(name, COMPLETIONS, json.dumps({**said, **body}).encode())


MALFORMED = (
    Malformed("no JSON", CHAT, b'{"messages": ['),
    Malformed("no UTF-8", COMPLETIONS, b'{"prompt": "\xff\xfe"}'),
    Malformed("no object", COMPLETIONS, b"[1, 2]"),
    Malformed("no body", CHAT, b""),
    Malformed("no such place", "/v1/complete", b"{}"),
    _chat("no messages", {"messages": []}),
    _chat("a message of no role", {"messages": [{"content": "Hello"}]}),
    _chat("an unknown role", {"messages": [{"role": "nobody", "content": "Hello"}]}),
    _chat("a hot temperature", {"temperature": 1e9}),
    _chat("an unknown policy", {"draftgym": {"policy": "nobody:4"}}),
    _chat("a policy of a path", {"draftgym": {"policy": "/etc/passwd"}}),
    _chat("a negative draft", {"draftgym": {"max_draft": -1}}),
    _chat("many choices", {"n": 10**6}),
    _chat("an unknown model", {"model": "nobody"}),
    _completion("an empty prompt", {"prompt": ""}),
    _completion("a strange token", {"prompt": [1, 10**7]}),
    _completion("mixed prompts", {"prompt": ["a", 3]}),
    _completion("negative length", {"max_tokens": -3}),
    _completion("endless length", {"max_tokens": 10**7}),
    _completion("length of text", {"max_tokens": "many"}),
    _completion("a suffix", {"suffix": " world"}),
    _completion("an empty stop", {"stop": [""]}),
    _completion("a long prompt", {"prompt": [5] * 100_000}),
)


def oversize() -> Malformed:
    """A body that is far too large."""
    return _completion(OVERSIZE_NAME, {"prompt": "x" * OVERSIZE})


async def send(http: httpx2.AsyncClient, bad: Malformed) -> str:
    """Sends it; what is wrong with the answer, or nothing."""
    headers = {"Content-Type": "application/json"}
    try:
        response = await http.post(bad.path, content=bad.content, headers=headers)
    except httpx2.HTTPError as error:
        return repr(error)
    if 400 <= response.status_code < 500 and is_api_error(response.text):
        return ""
    return f"{response.status_code} {response.text[:200]}"
