"""Kept routers are used for what they were trained on, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.routers.contenders import RECORD, claim_run
from draftgym.decoding.arms import PLAIN, Arm, parse_arm
from draftgym.decoding.costs.cost_model import Curve
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.policies.folder import BODY
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceOrigin, TraceSet
from tests.routing_runs import prompts
from tests.traces import save_traces, tiny_traces


@pytest.fixture(scope="module")
def traces(target: Target, drafters: dict[str, Drafter]) -> TraceSet:
    return tiny_traces(target, drafters, prompts=prompts(0, 3), max_new_tokens=8)


@pytest.fixture(scope="module")
def arms(traces: TraceSet) -> list[Arm]:
    return [*map(parse_arm, traces.origin.arms), Arm(PLAIN, 0)]


def other_origin(traces: TraceSet, **changes: object) -> TraceSet:
    return replace(traces, origin=replace(traces.origin, **changes))  # type: ignore[arg-type]


def other_drafter(traces: TraceSet) -> TraceSet:
    return other_origin(traces, drafters={**traces.origin.drafters, "eagle3": "other weights"})


def other_costs(traces: TraceSet) -> TraceSet:
    model = traces.origin.cost_model
    slower = {**model.draft, "eagle3": Curve((1.0,), (9.0,))}
    return other_origin(traces, cost_model=replace(model, draft=slower))


def fewer_texts(traces: TraceSet) -> TraceSet:
    return replace(traces, texts=traces.texts[1:])


def test_the_same_traces_go_on_even_read_from_disk(
    traces: TraceSet, arms: list[Arm], tmp_path: Path
) -> None:
    claim_run(tmp_path / "run", traces, arms)
    saved = read_traces(save_traces(traces, tmp_path / "traces"))
    claim_run(tmp_path / "run", saved, arms)


def test_the_host_that_says_another_command_is_no_other_origin(
    traces: TraceSet, arms: list[Arm], tmp_path: Path
) -> None:
    claim_run(tmp_path, traces, arms)
    claim_run(tmp_path, other_origin(traces, host={"command": "another"}), arms)


@pytest.mark.parametrize(
    ("change", "told"),
    [(other_drafter, "other weights"), (other_costs, "cost model"), (fewer_texts, "texts")],
)
def test_other_traces_are_refused_with_a_remedy(
    change: Callable[[TraceSet], TraceSet],
    told: str,
    traces: TraceSet,
    arms: list[Arm],
    tmp_path: Path,
) -> None:
    claim_run(tmp_path, traces, arms)
    record = (tmp_path / RECORD).read_bytes()
    with pytest.raises(DraftgymError, match=told) as caught:
        claim_run(tmp_path, change(traces), arms)
    assert "--run" in caught.value.remedy
    assert (tmp_path / RECORD).read_bytes() == record


def test_a_choice_among_other_arms_is_refused(
    traces: TraceSet, arms: list[Arm], tmp_path: Path
) -> None:
    claim_run(tmp_path, traces, arms)
    with pytest.raises(DraftgymError, match="choice"):
        claim_run(tmp_path, traces, arms[1:])


def test_routers_of_unknown_traces_are_refused(
    traces: TraceSet, arms: list[Arm], tmp_path: Path
) -> None:
    (tmp_path / "ppo-0" / "policy").mkdir(parents=True)
    (tmp_path / "ppo-0" / "policy" / BODY).write_text("{}")
    with pytest.raises(DraftgymError, match="nothing tells"):
        claim_run(tmp_path, traces, arms)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"origin": 3'])
def test_a_damaged_record_is_refused(
    text: str, traces: TraceSet, arms: list[Arm], tmp_path: Path
) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(DraftgymError, match=RECORD):
        claim_run(tmp_path, traces, arms)


def test_an_origin_survives_its_way_through_json(traces: TraceSet) -> None:
    again = TraceOrigin.from_json(traces.origin.to_json())
    assert again == traces.origin
    assert again.cost_model == traces.origin.cost_model
