"""Traces of the tiny models, for tests that replay them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from draftgym.decoding.arms import parse_arm, single_arms
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.rules import make_rule
from draftgym.rollouts.decode.batched import Request
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.traces.counterfactual import trace_texts
from draftgym.rollouts.traces.file import trace_table
from draftgym.rollouts.traces.shards import ShardWriter
from draftgym.rollouts.traces.trace import TraceOrigin, TraceSet
from tests.tiny import ARMS, PROMPTS, numbered_target, tiny_costs

NOISE_SEED = 5


def tiny_traces(
    target: Target,
    drafters: Mapping[str, Drafter],
    temperature: float = 0.0,
    arms: Sequence[str] = ARMS,
    prompts: Sequence[Prompt] = PROMPTS,
    max_new_tokens: int = 40,
) -> TraceSet:
    """Traces of prompts that are numbers."""
    reader, parsed = numbered_target(target), [parse_arm(arm) for arm in arms]
    rule = make_rule(None, temperature, NOISE_SEED, target.vocab_size)
    requests = [
        Request(p.question_id, p.category, temperature, NOISE_SEED, reader.encode(p.text))
        for p in prompts
    ]
    drafting = single_arms(parsed)
    used = {arm.drafter: drafters[arm.drafter] for arm in drafting}
    origin = TraceOrigin(
        target=target.name,
        target_fingerprint=target.fingerprint,
        dtype="float32",
        drafters={name: drafter.fingerprint for name, drafter in used.items()},
        lags={name: drafter.lag for name, drafter in used.items()},
        arms=tuple(map(str, drafting)),
        verification=rule.name,
        temperature=temperature,
        seed=NOISE_SEED,
        max_new_tokens=max_new_tokens,
        cost_model=tiny_costs(target, used),
    )
    texts = trace_texts(target, drafters, drafting, requests, max_new_tokens)
    return TraceSet(origin, list(texts))


def save_traces(traces: TraceSet, folder: Path) -> Path:
    """Writes traces into a folder; returns it."""
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, partial(trace_table, origin=traces.origin), 99) as writer:
        for text in traces.texts:
            writer.add(text)
    return folder


def shards(folder: Path) -> list[Path]:
    """Shards of a folder."""
    return sorted(folder.glob("part-*.parquet"))
