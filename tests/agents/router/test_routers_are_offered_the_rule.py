"""A router may choose the rule that users get without one, so that it can be no worse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from draftgym.agents.router.args import offered_arms
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.target import Target
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.policies.registry import default_policy
from draftgym.rollouts.traces.trace import TraceSet
from tests.traces import tiny_traces

TRACED = ("suffix:16", "eagle3:3x6", "ngram:5")


@pytest.fixture(scope="module")
def traces(target: Target, drafters: dict[str, Drafter]) -> TraceSet:
    return tiny_traces(target, {**drafters, "suffix": SuffixDrafter()}, arms=TRACED)


def test_the_rule_is_offered_where_its_parts_are_traced(
    traces: TraceSet, drafters: dict[str, Drafter]
) -> None:
    names = {"eagle3": drafters["eagle3"], "suffix": SuffixDrafter()}
    rule = default_policy(names).replace("suffix~", "suffix:16~")
    assert [*map(str, offered_arms(traces))] == [*TRACED, rule, "plain"]


def test_what_traces_do_not_tell_is_not_offered(traces: TraceSet) -> None:
    fewer = replace(traces, origin=replace(traces.origin, arms=TRACED[1:]))
    older = replace(traces, texts=[replace(text, drafts={}) for text in traces.texts])
    assert [*map(str, offered_arms(fewer))] == [*TRACED[1:], "plain"]
    assert [*map(str, offered_arms(older))] == [*TRACED, "plain"]
