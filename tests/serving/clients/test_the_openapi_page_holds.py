"""schemathesis, unmodified: whatever our OpenAPI page allows or forbids, no request fails us."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans

from draftgym.serving.http.service import Limits
from tests.serving.clients.served import PATIENCE, Served, Tiny, serve
from tests.tiny_text import VOCAB

READ = {"/v1/models", "/v1/models/{name}", "/health", "/metrics", "/tokenizer_info"}
ASKED = {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}
EXAMPLES = 25
MOST = 8
REFUSED = {
    *("model", "draftgym", "suffix", "best_of", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "tools", "tool_choice", "functions", "function_call", "response_format"),
    *("modalities", "audio", "top_logprobs", "chat_template_kwargs"),
}
NOT_PROMISED = ("negative_data_rejection", "positive_data_acceptance")
"""Numbers in quotes are numbers, and a model has limits that no page has."""


@pytest.fixture(scope="module")
def brief(tiny: Tiny) -> Iterator[Served]:
    """A server that writes short texts alone, so that no valid request takes long."""
    with serve(tiny, Limits(most_new_tokens=MOST, default_new_tokens=4)) as server:
        yield server


def test_every_endpoint_is_described(brief: Served) -> None:
    page = httpx.get(f"{brief.address}/openapi.json", timeout=PATIENCE).json()
    assert page["paths"].keys() >= READ | ASKED


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(READ | ASKED))
def test_answers_are_as_described(brief: Served, path: str) -> None:
    check(brief, path, "POSITIVE")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ASKED))
def test_requests_that_are_not_as_described_are_no_failures(brief: Served, path: str) -> None:
    check(brief, path, "NEGATIVE")


def check(served: Served, path: str, mode: str) -> None:
    """Sends requests to an endpoint, and compares what comes back with the page."""
    import schemathesis
    from schemathesis.checks import CHECKS

    page = schemathesis.openapi.from_url(f"{served.address}/openapi.json")
    operation = page[path]["POST" if path in ASKED else "GET"]
    excluded = [CHECKS.get_one(name) for name in NOT_PROMISED]

    @settings(max_examples=EXAMPLES)
    @given(case=operation.as_strategy(schemathesis.GenerationMode[mode]), within=booleans())
    def holds(case: schemathesis.Case, within: bool) -> None:
        if within and isinstance(case.body, dict):
            case.body = within_limits(case.body)
        case.call_and_validate(excluded_checks=excluded, timeout=PATIENCE)

    holds()


def within_limits(body: dict[str, Any]) -> dict[str, Any]:
    """A request that is likelier to be served: of this model, and of nothing that is refused."""
    kept = {name: value for name, value in body.items() if name not in REFUSED}
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(kept.get(name), int):
            kept[name] %= MOST + 1
    if isinstance(prompt := kept.get("prompt"), list) and all(type(one) is int for one in prompt):
        kept["prompt"] = [one % VOCAB for one in prompt]
    return kept
