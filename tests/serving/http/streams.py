"""Reads streams as they come over the wire."""

from __future__ import annotations

import json
from typing import Any

import httpx


def stream(client: httpx.Client, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream, which ends as it should."""
    answer = client.post(path, json={"stream": True, **asked})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """The text of a choice."""
    choices = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
    return "".join(
        one["text"] if "text" in one else one["delta"].get("content", "") for one in choices
    )
