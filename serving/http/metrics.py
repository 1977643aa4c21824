"""What a server tells of itself: for Prometheus, and of a single text.

Names that begin with `vllm:` mean what they mean in vLLM, so that its dashboards and load
generators read them; those that begin with `draftgym_` say what others do not have.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from draftgym.decoding.round import RoundRecord
from draftgym.serving.batching.requests import TextStatistics
from draftgym.serving.batching.watching import Judged, RoundFacts

MODEL = "model_name"
SECONDS = tuple(one * 10.0**power for power in range(-3, 3) for one in (1, 2, 5))
"""Borders of histograms of seconds, 1 ms to 500 s."""
TOKENS = tuple(float(1 << power) for power in range(16))
TEXTS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
FINISHED = ("stop", "length")
Metric = TypeVar("Metric", Counter, Gauge)


class Metrics:
    """Counts what a batch does; a `Watch`.

    Args:
        model: What requests call the model.

    Attributes:
        registry: Of this server alone.
    """

    def __init__(self, model: str) -> None:
        self.registry, self._model = CollectorRegistry(), model
        self._make_requests()
        self._make_speculation()
        self._make_batch()

    def exposition(self) -> tuple[bytes, str]:
        """Everything, in Prometheus' text format; any thread may ask.

        OpenMetrics is not offered: `prometheus_client` writes the colons of names otherwise there.

        Returns:
            The text, and its content type.
        """
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def queue(self, running: int, waiting: int, cache_bytes: int) -> None:
        """See `Watch`."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._cache_bytes.set(cache_bytes)

    def refused(self) -> None:
        """See `Watch`."""
        self._refused.inc()

    def began(self, statistics: TextStatistics, new_tokens: int) -> None:
        """See `Watch`."""
        self._prompt_tokens.inc(statistics.prompt_tokens)
        self._prefix_queries.inc(statistics.prompt_tokens)
        self._prefix_hits.inc(statistics.reused_tokens)
        self._queue_seconds.observe(statistics.queue_seconds)
        if new_tokens:
            self._generated.inc(new_tokens)
            self._first_token.observe(statistics.first_token_seconds)

    def round(self, facts: RoundFacts) -> None:
        """See `Watch`."""
        records = facts.records
        self._batch_size.observe(len(records))
        self._generated.inc(sum(len(record.committed) for record in records))
        self._count_phases(facts)
        seconds = sum(asdict(facts.seconds).values())
        for _ in records:
            self._between_tokens.observe(seconds)
        if facts.held_back:
            self._held_back.inc()
        if facts.judged:
            self._show_guard(facts.judged)
        self._count_arms(records)
        self._count_drafts([record for record in records if record.drafted])

    def text(self, statistics: TextStatistics, new_tokens: int, outcome: str) -> None:
        """See `Watch`."""
        self._outcomes.labels(self._model, outcome).inc()
        if outcome not in FINISHED:
            return
        self._text_seconds.observe(statistics.seconds)
        self._prompt_lengths.observe(statistics.prompt_tokens)
        self._text_lengths.observe(new_tokens)
        if new_tokens > 1:
            writing = statistics.seconds - statistics.first_token_seconds
            self._token_seconds.observe(writing / (new_tokens - 1))

    def _make_requests(self) -> None:
        self._running = self._gauge("vllm:num_requests_running", "Texts in the batch")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Texts in the queue")
        self._refused = self._counter("draftgym_requests_refused", "Texts that found a full queue")
        self._outcomes = self._labelled(
            Counter,
            "vllm:request_success",
            "Texts that are over, by how they ended",
            "finished_reason",
        )
        for outcome in (*FINISHED, "abort", "error"):
            self._outcomes.labels(self._model, outcome)
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts, reused too")
        self._generated = self._counter("vllm:generation_tokens", "Tokens written")
        self._prefix_queries = self._counter(
            "vllm:prefix_cache_queries", "Tokens of prompts whose beginnings were looked up"
        )
        self._prefix_hits = self._counter(
            "vllm:prefix_cache_hits", "Tokens of prompts that were known from other texts"
        )
        self._queue_seconds = self._seconds(
            "vllm:request_queue_time_seconds", "Submission to the first rows of the prompt"
        )
        self._first_token = self._seconds(
            "vllm:time_to_first_token_seconds", "Submission to the first token"
        )
        self._between_tokens = self._seconds(
            "vllm:inter_token_latency_seconds", "Between the tokens of one round and of the next"
        )
        self._token_seconds = self._seconds(
            "vllm:request_time_per_output_token_seconds", "Per token behind a text's first, by text"
        )
        self._text_seconds = self._seconds(
            "vllm:e2e_request_latency_seconds", "Submission to the end"
        )
        self._prompt_lengths = self._histogram(
            "vllm:request_prompt_tokens", "Tokens of a prompt", TOKENS
        )
        self._text_lengths = self._histogram(
            "vllm:request_generation_tokens", "Tokens of a text", TOKENS
        )

    def _make_speculation(self) -> None:
        self._drafts = self._counter("vllm:spec_decode_num_drafts", "Rounds of texts with a draft")
        self._drafted = self._counter("vllm:spec_decode_num_draft_tokens", "Drafted tokens")
        self._accepted = self._counter("vllm:spec_decode_num_accepted_tokens", "Accepted tokens")
        self._accepted_at = self._labelled(
            Counter,
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens by position",
            "position",
        )
        self._arm_rounds = self._labelled(
            Counter, "draftgym_rounds", "Rounds of texts, by what drafted", "arm"
        )
        self._arm_drafted = self._labelled(
            Counter, "draftgym_drafted_tokens", "Drafted tokens by arm", "arm"
        )
        self._arm_accepted = self._labelled(
            Counter,
            "draftgym_accepted_tokens",
            "Accepted tokens by arm and position",
            "arm",
            "position",
        )

    def _make_batch(self) -> None:
        self._batch_size = self._histogram(
            "draftgym_batch_texts", "Texts verified in a pass", TEXTS
        )
        self._prompt_rows = self._counter("draftgym_prompt_rows", "Rows of prompts in passes")
        self._phases = self._labelled(
            Counter, "draftgym_phase_seconds", "Wall-clock of rounds by phase", "phase"
        )
        self._predicted = self._labelled(
            Counter,
            "draftgym_predicted_seconds",
            "The same by the server's costs: draft, and verify with prompts",
            "phase",
        )
        self._cache_bytes = self._gauge("draftgym_cache_bytes", "Memory of caches in use")
        self._held_back = self._counter(
            "draftgym_rounds_held_back", "Rounds of the batch that the guard kept plain"
        )
        kind = "texts", "policies"
        self._speculates = self._labelled(
            Gauge, "draftgym_guard_speculates", "Whether batches of a kind speculate", *kind
        )
        self._gain = self._labelled(
            Gauge, "draftgym_guard_gain", "Goodput with speculation over goodput without", *kind
        )

    def _labelled(self, kind: type[Metric], name: str, meaning: str, *labels: str) -> Metric:
        return kind(name, meaning, (MODEL, *labels), registry=self.registry)

    def _counter(self, name: str, meaning: str) -> Counter:
        return self._labelled(Counter, name, meaning).labels(self._model)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return self._labelled(Gauge, name, meaning).labels(self._model)

    def _seconds(self, name: str, meaning: str) -> Histogram:
        return self._histogram(name, meaning, SECONDS)

    def _histogram(self, name: str, meaning: str, borders: Sequence[float]) -> Histogram:
        made = Histogram(name, meaning, (MODEL,), registry=self.registry, buckets=borders)
        return made.labels(self._model)

    def _count_phases(self, facts: RoundFacts) -> None:
        """Seconds by phase; those of the pass go to prompts by their share of its rows."""
        seconds = asdict(facts.seconds)
        rows = sum(1 + len(record.drafted) for record in facts.records) + facts.prompt_rows
        seconds["prompt"] = seconds["verify"] * facts.prompt_rows / max(1, rows)
        seconds["verify"] -= seconds["prompt"]
        self._prompt_rows.inc(facts.prompt_rows)
        for phase, value in seconds.items():
            self._phases.labels(self._model, phase).inc(value)
        if facts.predicted is not None:
            for phase, value in zip(("draft", "verify"), facts.predicted, strict=True):
                self._predicted.labels(self._model, phase).inc(value)

    def _count_arms(self, records: Sequence[RoundRecord]) -> None:
        rounds: Count[str] = Count()
        drafted: Count[str] = Count()
        accepted: Count[tuple[str, int]] = Count()
        for record in records:
            arm = record.drafted_by
            rounds[arm] += 1
            drafted[arm] += len(record.drafted)
            accepted.update((arm, position) for position in range(record.accepted))
        for arm, count in rounds.items():
            self._arm_rounds.labels(self._model, arm).inc(count)
            self._arm_drafted.labels(self._model, arm).inc(drafted[arm])
        for (arm, position), count in accepted.items():
            self._arm_accepted.labels(self._model, arm, str(position)).inc(count)

    def _count_drafts(self, records: Sequence[RoundRecord]) -> None:
        self._drafts.inc(len(records))
        self._drafted.inc(sum(len(record.drafted) for record in records))
        self._accepted.inc(sum(record.accepted for record in records))
        positions = Count(position for record in records for position in range(record.accepted))
        for position, count in positions.items():
            self._accepted_at.labels(self._model, str(position)).inc(count)

    def _show_guard(self, judged: Sequence[Judged]) -> None:
        """What is judged now; kinds that the guard has forgotten are not shown any more."""
        self._speculates.clear()
        self._gain.clear()
        for one in judged:
            texts = str(one.most) if one.most == one.fewest else f"{one.fewest}-{one.most}"
            kind = self._model, texts, ",".join(one.policies)
            self._speculates.labels(*kind).set(one.speculates)
            if one.gain is not None:
                self._gain.labels(*kind).set(one.gain)


def speculative_decoding(statistics: TextStatistics) -> dict[str, Any]:
    """A text's drafts as vLLM tells them with `--per-request-spec-decode-metrics summary`.

    Rounds without a draft are left out. Drafts have no configured length here; the text's longest
    one takes its place (`num_spec_tokens`), counted in tokens, as those of a tree are.

    Returns:
        Counts, means, and accepted tokens of the drafts: how many drafts had 0, 1, ... of them
        accepted, of all drafts and of those of each length.
    """
    drafts = [pair for pair in zip(statistics.drafted, statistics.accepted, strict=True) if pair[0]]
    drafted, accepted = (sum(pair[at] for pair in drafts) for at in (0, 1))
    longest = max((length for length, _ in drafts), default=0)

    def histogram(length: int, kept: Sequence[int]) -> list[int]:
        counts = Count(kept)
        return [counts[number] for number in range(length + 1)]

    by_length = {
        str(length): histogram(length, [kept for its, kept in drafts if its == length])
        for length in sorted({length for length, _ in drafts})
    }
    return {
        "mean_acceptance_length": 1 + accepted / max(1, len(drafts)),
        "draft_acceptance_rate": accepted / max(1, drafted),
        "acceptance_histogram": histogram(longest, [kept for _, kept in drafts]),
        "acceptance_histogram_by_draft_length": by_length,
        "num_spec_steps": len(drafts),
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": longest,
    }
