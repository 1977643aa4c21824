"""What a server tells of itself has vLLM's names and adds up to what its texts tell."""

from __future__ import annotations

import math

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.serving.batching.batcher import QueueFull
from draftgym.serving.batching.requests import TextRequest, TextStatistics
from draftgym.serving.batching.watching import Judged, PhaseSeconds, RoundFacts
from draftgym.serving.http.metrics import Metrics, speculative_decoding
from tests.serving.batches import Heard, batcher, play, prompt_of, submit, written

OF_VLLM = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prefix_cache_hits": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:spec_decode_num_drafts": "counter",
    "vllm:spec_decode_num_draft_tokens": "counter",
    "vllm:spec_decode_num_accepted_tokens": "counter",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "counter",
}


def families(metrics: Metrics) -> dict[str, Metric]:
    """What a reader finds."""
    text = metrics.exposition()[0].decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of a sample over all labels but these; as in queries, with its suffix."""
    samples = [one for family in families(metrics).values() for one in family.samples]
    mine = [one for one in samples if one.name == name and labels.items() <= one.labels.items()]
    return sum(one.value for one in mine)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("tiny")


def requests(target: Target) -> list[TextRequest]:
    """Texts that draft, that do not, and one that only reads."""
    prompts = [prompt_of(target, 6 + i, i) for i in range(5)]
    made = [TextRequest(prompt, 20, seed=i) for i, prompt in enumerate(prompts)]
    plain = TextRequest(prompt_of(target, 9, 7), 12, max_draft=0)
    return [*made, plain, TextRequest(prompt_of(target, 8, 8), 0), TextRequest(prompts[0], 1)]


@pytest.fixture
def heard(target: Target, drafters: dict[str, Drafter], metrics: Metrics) -> list[Heard]:
    """What the readers of some texts were told."""
    batch = batcher(target, drafters, "random@eagle3:3,eagle3:2x4,ngram:4,plain", watch=metrics)
    return written(batch, requests(target))


def test_names_and_types_are_vllms(metrics: Metrics, heard: list[Heard]) -> None:
    found = families(metrics)
    assert {name: found[name].type for name in OF_VLLM} == OF_VLLM
    for family in found.values():
        assert family.documentation
        assert all(sample.labels["model_name"] == "tiny" for sample in family.samples)


def test_a_quiet_server_shows_zeros(metrics: Metrics) -> None:
    for name in ("vllm:num_requests_running", "vllm:generation_tokens_total"):
        assert [sample.value for sample in families(metrics)[name.removesuffix("_total")].samples]
    assert total(metrics, "vllm:request_success_total") == 0
    assert len(families(metrics)["vllm:request_success"].samples) == 4


def test_tokens_add_up_over_texts(target: Target, metrics: Metrics, heard: list[Heard]) -> None:
    asked = requests(target)
    told = [one.statistics for one in heard]
    assert total(metrics, "vllm:generation_tokens_total") == sum(len(one.tokens) for one in heard)
    assert total(metrics, "vllm:prompt_tokens_total") == sum(len(one.prompt) for one in asked)
    assert total(metrics, "vllm:prefix_cache_hits_total") == sum(one.reused_tokens for one in told)
    assert total(metrics, "vllm:request_success_total") == len(heard)
    assert total(metrics, "vllm:request_success_total", finished_reason="length") == len(heard)
    assert total(metrics, "vllm:time_to_first_token_seconds_count") == len(heard) - 1
    assert total(metrics, "vllm:e2e_request_latency_seconds_count") == len(heard)
    seconds = sum(one.seconds for one in told)
    assert math.isclose(total(metrics, "vllm:e2e_request_latency_seconds_sum"), seconds)
    assert total(metrics, "vllm:num_requests_running") == 0


def test_drafts_add_up_over_texts(metrics: Metrics, heard: list[Heard]) -> None:
    of_texts = [speculative_decoding(one.statistics) for one in heard]
    for name, key in [
        ("vllm:spec_decode_num_drafts_total", "num_spec_steps"),
        ("vllm:spec_decode_num_draft_tokens_total", "num_draft_tokens"),
        ("vllm:spec_decode_num_accepted_tokens_total", "num_accepted_draft_tokens"),
    ]:
        assert total(metrics, name) == sum(one[key] for one in of_texts) > 0
    accepted = total(metrics, "vllm:spec_decode_num_accepted_tokens_total")
    assert total(metrics, "vllm:spec_decode_num_accepted_tokens_per_pos_total") == accepted
    assert total(metrics, "draftgym_accepted_tokens_total") == accepted
    drafted = total(metrics, "vllm:spec_decode_num_draft_tokens_total")
    assert total(metrics, "draftgym_drafted_tokens_total") == drafted
    by_position = [
        total(metrics, "vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(at))
        for at in range(4)
    ]
    assert by_position == sorted(by_position, reverse=True)


def test_rounds_are_counted_by_arm(metrics: Metrics, heard: list[Heard]) -> None:
    arms = {arm for one in heard for arm in one.statistics.arms}
    assert len(arms) > 2
    for arm in arms:
        count = sum(one.statistics.arms.get(arm, 0) for one in heard)
        assert total(metrics, "draftgym_rounds_total", arm=arm) == count


def test_who_leaves_and_who_is_refused_are_counted(
    target: Target, drafters: dict[str, Drafter], metrics: Metrics
) -> None:
    batch = batcher(target, drafters, watch=metrics, most_running=1, most_waiting=1)
    submit(batch, [TextRequest(prompt_of(target, 8, 0), 20)])
    batch.step()
    number = batch.submit(TextRequest(prompt_of(target, 8, 1), 20), lambda event: None)
    with pytest.raises(QueueFull):
        batch.submit(TextRequest(prompt_of(target, 8, 2), 20), lambda event: None)
    batch.step()
    assert total(metrics, "vllm:num_requests_running") == 1
    assert total(metrics, "vllm:num_requests_waiting") == 1
    assert total(metrics, "draftgym_cache_bytes") > 0
    batch.cancel(number)
    play(batch)
    assert total(metrics, "vllm:request_success_total", finished_reason="abort") == 1
    assert total(metrics, "draftgym_requests_refused_total") == 1
    assert total(metrics, "vllm:e2e_request_latency_seconds_count") == 1


def test_the_pass_is_shared_between_prompts_and_texts(metrics: Metrics) -> None:
    metrics.round(RoundFacts([], 5, PhaseSeconds(0, 0, 3, 1)))
    found = {name: total(metrics, "draftgym_phase_seconds_total", phase=name) for name in PHASES}
    assert found == {"choose": 0, "draft": 0, "verify": 0, "commit": 1, "prompt": 3}
    assert total(metrics, "draftgym_prompt_rows_total") == 5


PHASES = ("choose", "draft", "verify", "commit", "prompt")


def test_seconds_of_phases_are_those_of_rounds(metrics: Metrics, heard: list[Heard]) -> None:
    spent = total(metrics, "draftgym_phase_seconds_total")
    assert spent <= sum(one.statistics.seconds for one in heard)
    assert all(total(metrics, "draftgym_phase_seconds_total", phase=name) > 0 for name in PHASES)


def test_the_guard_is_shown_as_it_is_now(metrics: Metrics) -> None:
    known = Judged(5, 8, ("a", "b"), False, 0.5), Judged(1, 1, ("a",), True, None)
    metrics.round(RoundFacts([], 1, PhaseSeconds(), held_back=True, judged=known))
    assert total(metrics, "draftgym_rounds_held_back_total") == 1
    labels = {"texts": "5-8", "policies": "a,b"}
    assert total(metrics, "draftgym_guard_gain", **labels) == 0.5
    assert total(metrics, "draftgym_guard_speculates", **labels) == 0
    assert total(metrics, "draftgym_guard_speculates", texts="1") == 1
    metrics.round(RoundFacts([], 1, PhaseSeconds(), judged=known[1:]))
    assert len(families(metrics)["draftgym_guard_speculates"].samples) == 1


def test_names_keep_their_colons(metrics: Metrics) -> None:
    text, kind = metrics.exposition()
    assert kind.startswith("text/plain")
    assert b'\nvllm:generation_tokens_total{model_name="tiny"} 0.0\n' in text


def test_two_servers_count_apart(metrics: Metrics, heard: list[Heard]) -> None:
    assert total(Metrics("other"), "vllm:generation_tokens_total") == 0


def test_a_texts_histograms_are_dense() -> None:
    told = speculative_decoding(TextStatistics(drafted=[3, 0, 3, 1, 3], accepted=[0, 0, 3, 1, 3]))
    assert told == {
        "mean_acceptance_length": 1 + 7 / 4,
        "draft_acceptance_rate": 0.7,
        "acceptance_histogram": [1, 1, 0, 2],
        "acceptance_histogram_by_draft_length": {"1": [0, 1], "3": [1, 0, 0, 2]},
        "num_spec_steps": 4,
        "num_accepted_draft_tokens": 7,
        "num_draft_tokens": 10,
        "num_spec_tokens": 3,
    }


def test_a_text_without_drafts_has_zeros() -> None:
    told = speculative_decoding(TextStatistics(drafted=[0, 0], accepted=[0, 0]))
    assert told["acceptance_histogram"] == [0] and told["num_spec_steps"] == 0
    assert (told["mean_acceptance_length"], told["draft_acceptance_rate"]) == (1.0, 0.0)
    assert told["acceptance_histogram_by_draft_length"] == {}


def test_histograms_hold_every_draft(metrics: Metrics, heard: list[Heard]) -> None:
    for one in heard:
        told = speculative_decoding(one.statistics)
        counts = told["acceptance_histogram"]
        assert len(counts) == told["num_spec_tokens"] + 1
        assert sum(counts) == told["num_spec_steps"]
        assert sum(n * count for n, count in enumerate(counts)) == told["num_accepted_draft_tokens"]
        rows = told["acceptance_histogram_by_draft_length"]
        assert all(len(row) == int(length) + 1 for length, row in rows.items())
        assert sum(map(sum, rows.values())) == told["num_spec_steps"]
