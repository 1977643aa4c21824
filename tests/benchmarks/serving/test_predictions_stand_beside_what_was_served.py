"""A server's figures stand beside the environment's for the same texts, and no text differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import markdown
from benchmarks.serving import predicted
from benchmarks.serving.predicted import PredictedArgs, measure
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.host_costs import HostCosts
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.rule import Ladder
from draftgym.policies.serving.stored import save_rule
from draftgym.policies.serving.tokens import save_forecast
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.traces.trace import TraceSet
from tests.serving.batching.test_policies_for_batches_are_served import some_forecast
from tests.tiny import numbered_target
from tests.traces import save_traces, tiny_traces

PROMPTS = [Prompt(f"p{i}", "chat", (f"{i}",)) for i in range(6)]
CASCADE = "ngram:4@2>eagle3:3"
ARMS = ("eagle3:1", "eagle3:3", "dflash:3", "ngram:4")


@pytest.fixture(scope="module")
def traced(target: Target, drafters: dict[str, Drafter]) -> TraceSet:
    return tiny_traces(target, drafters, arms=ARMS, prompts=PROMPTS, max_new_tokens=16)


@pytest.fixture
def args(
    traced: TraceSet,
    target: Target,
    drafters: dict[str, Drafter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> PredictedArgs:
    monkeypatch.setattr(predicted, "load_prompts", lambda name: PROMPTS)
    monkeypatch.setattr(PredictedArgs, "load", lambda args: (numbered_target(target), drafters))
    rows = ((0.01, 0.02), (0.02, 0.03))
    batches = BatchCost({}, (8, 64), (1, 4), (1, 9), (rows, rows))
    host = tmp_path / "host.json"
    host.write_text(HostCosts(batches, traced.origin.cost_model, {}).to_json())
    ladder = Ladder.of("eagle3", (1, 3), parse_arm("ngram:4@2"))
    save_rule(LengthBySize(ladder, {2: 3, 4: 1}), target, tmp_path / "table", {})
    save_forecast(some_forecast(), target, tmp_path / "forecast", {})
    return PredictedArgs(
        heldout=save_traces(traced, tmp_path / "heldout"),
        costs=host,
        policies=("plain", CASCADE, str(tmp_path / "table"), str(tmp_path / "forecast")),
        sessions=4,
        requests=6,
        repeats=2,
        json=tmp_path / "predicted.json",
    )


@pytest.mark.slow
def test_the_same_texts_are_predicted_and_served(args: PredictedArgs, traced: TraceSet) -> None:
    rows = {row["who"]: row for row in measure(args)["rows"]}
    assert list(rows) == ["plain", CASCADE, "table", "forecast"]
    for row in rows.values():
        assert row["measured"]["unlike"] == 0
        assert row["measured"]["goodput"] > 0 and row["predicted"]["goodput"] > 0
        assert sum(row["measured"]["shares"].values()) == pytest.approx(1.0)
    for who in ("plain", CASCADE):  # they see neither costs nor clock
        tokens = (rows[who][key]["tokens_per_round"] for key in ("predicted", "measured"))
        assert len(set(tokens)) == 1
    assert args.json is not None and "forecast" in markdown(args.json)


@pytest.mark.parametrize("what", ["target_fingerprint", "drafters", "temperature"])
def test_traces_of_something_else_are_refused(
    args: PredictedArgs, traced: TraceSet, what: str
) -> None:
    other: dict[str, Any] = {
        "target_fingerprint": "0" * 32,
        "drafters": {**traced.origin.drafters, "eagle3": "0" * 32},
        "temperature": 1.0,
    }
    wrong = replace(traced, origin=replace(traced.origin, **{what: other[what]}))
    with pytest.raises(DraftgymError) as refused:
        measure(replace(args, heldout=save_traces(wrong, args.heldout / "other")))
    assert refused.value.remedy


def test_other_prompts_than_the_traced_ones_are_refused(
    args: PredictedArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [replace(one, turns=("9",)) for one in PROMPTS]
    for prompts in (others, PROMPTS[:2]):
        monkeypatch.setattr(predicted, "load_prompts", lambda name, its=prompts: its)
        with pytest.raises(DraftgymError, match="not the one that was traced"):
            measure(args)
