"""Texts of a run share no noise; a text keeps its own under every policy, and results tell it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.seeds import derived_seed, text_seed
from draftgym.rollouts.decode.batched import requests_of_run
from draftgym.rollouts.decode.evaluation import chosen_policies, compare
from draftgym.rollouts.decode.fitting import fit_prompts
from draftgym.rollouts.decode.interleaved import DecodeSettings, decode_prompts
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.report.as_json import report_json
from draftgym.rollouts.traces.counterfactual import trace_texts
from draftgym.rollouts.traces.file import read_traces, trace_table
from draftgym.rollouts.traces.shards import ShardWriter
from draftgym.rollouts.traces.trace import ONE_FOR_ALL, PER_TEXT, TraceSet
from tests.tiny import numbered_target
from tests.traces import tiny_traces

PROMPTS = [Prompt(f"q{i}", "chat", (f"{i}",)) for i in range(200)]
"""All of one length."""


def test_two_hundred_sampled_texts_begin_in_many_ways(target: Target) -> None:
    """At T = 3 noise decides nearly alone; under one seed for all, all would begin alike."""
    reader, settings = numbered_target(target), DecodeSettings(1, temperature=3.0)
    plain = {"plain": PlainPolicy()}
    decoded = decode_prompts(reader, {}, plain, PROMPTS, settings, progress=False)
    begun = [text.generation.tokens[0] for text in decoded]
    assert len(set(begun)) >= 40
    requests = requests_of_run(fit_prompts(reader, PROMPTS, 1), 3.0, settings.seed)
    traced = list(trace_texts(reader, {}, [parse_arm("plain")], requests, 1))
    assert [text.tokens[0] for text in traced] == begun, "traces are of the texts of an evaluation"
    other = decode_prompts(reader, {}, plain, PROMPTS, replace(settings, seed=1), progress=False)
    assert sum(a == b.generation.tokens[0] for a, b in zip(begun, other, strict=True)) < 50


def test_generate_writes_a_text_of_an_evaluation_again(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    reader, settings = numbered_target(target), DecodeSettings(12, temperature=1.0, seed=9)
    policies = chosen_policies(["plain", "eagle3", "random"], drafters, reader)
    result = compare(reader, drafters, policies, PROMPTS[:3], settings, progress=False)
    assert result.differences == [], "every policy has plain decoding's noise"
    told = {
        (row["policy"], row["question_id"]): row["seed"] for row in report_json(result)["texts"]
    }
    plain = SpeculativeDecoder(reader, {}, PlainPolicy())
    for text in result.texts:
        seed = told[text.policy, text.prompt.question_id]
        again = plain.generate(text.prompt.text, 12, temperature=1.0, seed=seed)
        assert again.tokens == text.generation.tokens


def test_seeds_are_the_same_in_every_process() -> None:
    assert text_seed(0, "chat-heldout-001") == derived_seed(0, "chat-heldout-001")
    assert text_seed(0, "chat-heldout-001") == 0x11328015B29035AB
    assert len({text_seed(run, f"q{i}") for run in range(30) for i in range(30)}) == 900


def as_before(texts: TraceSet, table: Any) -> Any:
    """A shard as versions before wrote it."""
    made = trace_table(table, texts.origin)
    body = json.loads(made.schema.metadata[b"draftgym"])
    del body["origin"]["seeding"]
    return made.replace_schema_metadata({b"draftgym": json.dumps(body | {"schema_version": 2})})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_old_traces_of_sampled_texts_say_that_they_share_their_noise(
    target: Target,
    drafters: dict[str, Drafter],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    temperature: float,
) -> None:
    made = tiny_traces(target, drafters, temperature, arms=["ngram:4"])
    with ShardWriter(tmp_path, partial(as_before, made), 9) as writer:
        writer.add(made.texts[0])
    capsys.readouterr()
    origin = read_traces(tmp_path).origin
    if temperature:
        assert origin.seeding == origin.describe()["seeding"] == ONE_FOR_ALL
        assert origin.differences(made.origin) == [f"seeding: {ONE_FOR_ALL} / {PER_TEXT}"]
        assert capsys.readouterr().err.count("share one noise seed") == 1
    else:
        assert origin == made.origin, "greedy texts have no noise: old and new ones are alike"
        assert capsys.readouterr().err == ""
