"""A running server shows its metrics, and tells each answer's drafts as vLLM does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from draftgym.serving.http.service import Limits
from tests.serving.clients.served import NAME, PATIENCE, Served, Tiny, make_tiny, serve


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def served(tiny: Tiny) -> Iterator[Served]:
    with serve(tiny) as one:
        yield one


def sample(served: Served, name: str) -> float:
    """The sum of a sample over its labels."""
    answer = httpx.get(f"{served.address}/metrics", timeout=PATIENCE)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    samples = [one for family in families for one in family.samples if one.name == name]
    assert samples and all(one.labels["model_name"] == NAME for one in samples)
    return sum(one.value for one in samples)


def complete(served: Served, **fields: Any) -> dict[str, Any]:
    """An answer's body."""
    body = {"model": NAME, "prompt": "abcabcabc", "max_tokens": 24, "temperature": 0, **fields}
    answer = httpx.post(f"{served.v1}/completions", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_answers_are_counted(served: Served) -> None:
    before = sample(served, "vllm:generation_tokens_total")
    told = complete(served, n=2)
    written = told["usage"]["completion_tokens"]
    assert sample(served, "vllm:generation_tokens_total") == before + written


def test_an_answer_tells_its_drafts(served: Served) -> None:
    drafted = sample(served, "vllm:spec_decode_num_draft_tokens_total")
    told = complete(served, draftgym={"policy": "eagle3:3"})
    one = told["metrics"]["speculative_decoding"]
    assert one["num_draft_tokens"] > 0
    assert sample(served, "vllm:spec_decode_num_draft_tokens_total") == (
        drafted + one["num_draft_tokens"]
    )
    assert sum(one["acceptance_histogram"]) == one["num_spec_steps"]
    assert max(map(int, one["acceptance_histogram_by_draft_length"])) == one["num_spec_tokens"]
    details = told["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == one["num_accepted_draft_tokens"]


def test_a_server_that_still_loads_shows_metrics(tiny: Tiny) -> None:
    with serve(tiny, loaded=False) as served:
        assert sample(served, "vllm:generation_tokens_total") == 0


def test_metrics_need_the_key_as_all_else(tiny: Tiny) -> None:
    with serve(tiny, Limits(keys=("secret",))) as served:
        url = f"{served.address}/metrics"
        assert httpx.get(url, timeout=PATIENCE).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert httpx.get(url, headers=key, timeout=PATIENCE).status_code == 200
