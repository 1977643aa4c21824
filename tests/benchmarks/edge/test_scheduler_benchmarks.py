"""Benchmarks of schedulers measure what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.report import markdown
from benchmarks.schedulers.comparison import SchedulersArgs, compare_schedulers
from benchmarks.schedulers.contenders import (
    CLOSED_FORM,
    FIXED,
    FORCED,
    ONE_BY_ONE,
    ORACLE,
    RULES,
    Contender,
    read_group,
    rule_contenders,
    trained_contenders,
)
from benchmarks.schedulers.doubt import WAYS, DoubtArgs
from benchmarks.schedulers.doubt import measure as measure_doubt
from benchmarks.schedulers.figures import (
    Scenario,
    aims_met,
    join,
    judge,
    over,
    share_of_gain,
)
from benchmarks.schedulers.geometric_error import GeometricErrorArgs, model_errors
from benchmarks.schedulers.geometric_error import measure as measure_errors
from benchmarks.schedulers.speed import SchedulerSpeedArgs
from benchmarks.schedulers.speed import measure as measure_speed
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.agents.scheduler.totals import CellTotals
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from draftgym.policies.schedulers.learned import (
    BELIEFS,
    LENGTHS,
    LearnedScheduler,
    SchedulerHead,
    save_scheduler,
)
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.statistics import Work, speed_ratio
from draftgym.rollouts.traces.file import trace_table
from draftgym.rollouts.traces.shards import ShardWriter
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.traces import handmade_traces
from tests.handmade.users import user_table, user_traces


def write_traces(traces: TraceSet, folder: Path) -> Path:
    folder.mkdir()
    with ShardWriter(folder, partial(trace_table, origin=traces.origin), 9) as writer:
        for text in traces.texts:
            writer.add(text)
    return folder


def write_policy(folder: Path, seed: int, confidence: bool = False, longest: int = 6) -> Path:
    torch.manual_seed(seed)
    head = SchedulerHead(BELIEFS, longest, USER_FEATURES, CELL_FEATURES)
    policy = LearnedScheduler(head.network(8), head)
    told = {"settings": {"cell": {"confidence": confidence}}}
    save_scheduler(policy, user_table().arms, user_traces().origin, folder, told)
    return folder


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces to play and to know beforehand, and three trained policies."""
    folder = tmp_path_factory.mktemp("ground")
    traces = user_traces()
    write_traces(traces, folder / "heldout")
    other = [replace(text, question_id=f"known-{text.question_id}") for text in traces.texts]
    write_traces(replace(traces, texts=other), folder / "known")
    for seed in range(3):
        write_policy(folder / f"run-{seed}" / "policy", seed, confidence=seed == 2)
    return folder


def fields_of(result: dict[str, Any]) -> Any:
    """A result whose figures are read as fields."""
    return json.loads(json.dumps(result), object_hook=lambda one: SimpleNamespace(**one))


def args_of(ground: Path, *policies: str, **more: object) -> SchedulersArgs:
    small = SchedulersArgs(
        traces=ground / "heldout",
        known=ground / "known",
        policies=policies,
        settings=("multispin-llama2",),
        payloads=("tokens",),
        users=(2,),
        cell=CellArgs(deadline=1.0),
        cells=2,
        rounds=8,
        seeds=2,
    )
    return replace(small, **more)


@pytest.mark.slow
def test_everybody_plays_the_same_cells_and_seeds_of_a_method_are_one_row(ground: Path) -> None:
    pooled = f"ppo={ground / 'run-0/policy'},{ground / 'run-1/policy'}"
    alone = ground / "run-0/policy"
    (outcome,) = fields_of(compare_schedulers(args_of(ground, pooled, str(alone)))).scenarios
    rows = {row.name: row for row in outcome.rows}
    assert {*RULES, FORCED, "ppo", "run-0"} <= set(rows)
    assert len(rows["ppo"].goodput_by_seed) == 2 and rows["ppo"].trained
    assert rows["ppo"].goodput_by_seed[0] == rows["run-0"].goodput_by_seed[0], "same cells"
    assert (
        min(rows["ppo"].goodput_by_seed)
        < rows["ppo"].goodput.value
        < max(rows["ppo"].goodput_by_seed)
    )
    one = rows[FIXED].over_fixed
    assert (one.low, one.value, one.high) == (1, 1, 1) and not rows[FIXED].trained
    closed = rows[CLOSED_FORM]
    assert closed.over_fixed.value == pytest.approx(
        closed.goodput.value / rows[FIXED].goodput.value
    )
    again = fields_of(compare_schedulers(args_of(ground, str(alone)))).scenarios[0].rows
    assert closed in again, "whoever else plays"
    judged = {verdict.name: verdict for verdict in outcome.verdicts}
    best = judged["ppo"].closed_form
    ratio = rows["ppo"].goodput.value / rows[best].goodput.value
    assert judged["ppo"].over_closed_form.value == pytest.approx(ratio)


def test_files_hold_figures_of_every_scenario_and_where_they_come_from(ground: Path) -> None:
    file = ground / "out.json"
    policy = f"sac={ground / 'run-2/policy'}"
    kinds = {"payloads": ("truncated", "tokens"), "cells": 1, "rounds": 4, "seeds": 1}
    body = compare_schedulers(args_of(ground, policy, **kinds, json=file))
    assert json.loads(file.read_text()) == body
    text = markdown(file)
    assert [one["scenario"]["payload"] for one in body["scenarios"]] == ["truncated", "tokens"]
    first = body["scenarios"][0]["rows"][0]
    assert {"cpu", "git_revision", "command", "traces", "known"} <= set(body["environment"])
    assert len(body["aims"]) == 2
    for shown in (f"{first['goodput']['value']:.2f}", "| sac", "heterogeneous@too-low", "aim 1.88"):
        assert shown in text


def test_rules_play_without_confidence_and_a_policy_as_it_was_trained(ground: Path) -> None:
    origin = user_traces().origin
    one, two = (str(ground / f"run-{seed}/policy") for seed in (1, 2))
    (found,) = trained_contenders([f"ppo={one},{two}"], origin)
    assert found.confidence == (False, True) and found.trained
    assert all(rule.confidence == (False,) for rule in rule_contenders(origin))


def test_policies_are_named_with_or_without_a_method() -> None:
    assert read_group("ppo=a,b/c") == ("ppo", [Path("a"), Path("b/c")])
    assert read_group("runs/x=1/policy") == ("x=1", [Path("runs/x=1/policy")])
    for spec in ("ppo=", "runs/a,runs/b", " "):
        with pytest.raises(DraftgymError) as caught:
            read_group(spec)
        assert caught.value.remedy


def test_what_cannot_play_is_refused_before_anything_is_played(ground: Path) -> None:
    short = write_policy(ground / "short" / "policy", 0, longest=4)
    known = str(ground / "run-0/policy")
    for args, problem in [
        (args_of(ground, str(short)), "drafts up to 4"),
        (args_of(ground, known, known), "named twice"),
        (args_of(ground, f"fixed={known}"), "named twice"),
        (args_of(ground, "runs/nowhere"), "not a policy folder"),
        (args_of(ground, known=ground / "heldout"), "both folders"),
        (args_of(ground, seeds=0), "--seeds is 0"),
        (args_of(ground, users=()), "no cells"),
        (args_of(ground, settings=("multispin-lama",)), "unknown setting"),
    ]:
        with pytest.raises(DraftgymError, match=problem) as caught:
            compare_schedulers(args)
        assert caught.value.remedy


def test_true_channels_are_worth_something_where_reports_are_late(ground: Path) -> None:
    args = DoubtArgs(
        policy=ground / "run-0/policy",
        traces=ground / "heldout",
        known=ground / "known",
        users=(4,),
        cell=CellArgs(report_rounds_old=1, deadline=0.6),
        cells=8,
        rounds=20,
    )
    rows = {row.way: row for row in fields_of(measure_doubt(args)).rows}
    assert list(rows) == list(WAYS)
    assert rows["as reported"].over.low == rows["as reported"].over.high == 1
    assert rows["as they are (unknowable), shares"].over.value > 1
    with pytest.raises(DraftgymError, match="sets lengths") as caught:
        head = SchedulerHead(LENGTHS, 6, USER_FEATURES, CELL_FEATURES)
        policy = LearnedScheduler(head.network(8), head)
        save_scheduler(policy, user_table().arms, user_traces().origin, ground / "other", {})
        measure_doubt(replace(args, policy=ground / "other"))
    assert "beliefs" in caught.value.remedy


def hand_tally(tokens: list[float], seconds: list[float]) -> CellTotals:
    """Cells of two users with equal rates."""
    made, took = np.array(tokens), np.array(seconds)
    rates = [np.full(2, rate / 2) for rate in made / took]
    pieces, by_arm = np.zeros((len(made), 6)), np.zeros((len(made), 1, 4))
    return CellTotals(made, took, made / took, made, made / 2, rates, took, made, pieces, by_arm)


def test_the_oracles_gain_is_shared_as_a_hand_reckons() -> None:
    closed, oracle = hand_tally([10, 20], [1, 1]), hand_tally([20, 30], [1, 1])
    seeds = [hand_tally([15, 25], [1, 1]), hand_tally([10, 20], [1, 1])]
    found = share_of_gain(seeds, [closed], [oracle])
    assert found is not None and found.value == pytest.approx(0.25)
    assert 0 <= found.low < 0.25 < found.high <= 0.5 + 1e-9, "training seeds are drawn, too"
    for one, share in ((closed, 0.0), (oracle, 1.0)):
        found = share_of_gain([one], [closed], [oracle])
        assert found is not None and found.value == found.low == found.high == share
    assert share_of_gain(seeds, [closed], [closed]) is None
    assert share_of_gain(seeds, [closed], None) is None


def test_with_one_training_seed_intervals_are_the_projects_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    mine, other = (hand_tally(*rng.uniform(5, 9, (2, 12)).round().tolist()) for _ in range(2))
    works = [
        [Work(int(t), s) for t, s in zip(one.tokens, one.seconds, strict=True)]
        for one in (mine, other)
    ]
    found, expected = over([mine], [other]), speed_ratio(*works)
    for name in ("value", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))


def test_joined_tallies_are_all_their_cells() -> None:
    one = join([hand_tally([8], [2]), hand_tally([3, 3], [1, 1])])
    assert one.tokens.tolist() == [8, 3, 3] and len(one.rates) == 3
    assert one.goodput == 14 / 4 and one.wasted == 0.5 and one.fairness == 1


def test_the_best_closed_form_is_the_best_on_these_cells() -> None:
    names = [*(rule for rule in RULES if rule != ORACLE), "ppo"]
    played = {name: [hand_tally([10, 10], [2, 2])] for name in names}
    played["heterogeneous@average"] = [hand_tally([12, 12], [2, 2])]
    played[ONE_BY_ONE] = [hand_tally([15, 15], [2, 2])]
    played["ppo"] = [hand_tally([18, 18], [2, 2])]
    contenders = [Contender(name, (), trained=name == "ppo") for name in names]
    outcome = fields_of(judge(Scenario("a", "tokens", 2), contenders, played))
    (verdict,) = outcome.verdicts
    assert verdict.closed_form == "heterogeneous@average" and verdict.share is None
    assert verdict.over_closed_form.value == 1.5 and verdict.over_fixed.value == 1.8
    assert outcome.heterogeneity == 1.5


def outcome_of(users: int, heterogeneity: float, fixed: float, closed: float) -> dict[str, Any]:
    ratios = {"over_fixed": {"value": fixed}, "over_closed_form": {"value": closed}}
    verdict = {"name": "ppo", "trained": True, **ratios}
    scenario = {"setting": "a", "payload": "tokens", "users": users}
    return {"scenario": scenario, "heterogeneity": heterogeneity, "verdicts": [verdict]}


@pytest.mark.parametrize(("closed", "met"), [(1.05, True), (1.04, False)])
def test_aims_are_judged_where_users_differ_most_and_everywhere(closed: float, met: bool) -> None:
    outcomes = [outcome_of(4, 1.1, 3.0, 1.2), outcome_of(8, 1.5, 1.9, closed)]
    fixed, everywhere = map(fields_of, aims_met(outcomes))
    assert fixed.reached and fixed.lowest.value == 1.9 and "8 users" in fixed.where
    assert everywhere.reached is met and everywhere.lowest.value == closed
    assert (everywhere.met, everywhere.scenarios) == (1 + met, 2)


def table_of(committed: Callable[[np.random.Generator, int], np.ndarray]) -> ChainTable:
    """Long texts of one drafter."""
    rng = np.random.default_rng(1)
    arms = {"small:16": lambda signals, hidden: committed(rng, len(signals))}
    return ChainTable(handmade_traces(arms, texts=8, length=3000, width=1))


def test_the_geometric_model_is_right_about_geometric_drafts_alone() -> None:
    lengths = (1, 2, 4, 8, 16, 32)
    right = model_errors(table_of(lambda rng, n: rng.geometric(0.3, n)), lengths)
    assert {one.length for one in right} == {1, 2, 4, 8, 16}
    for one in right:
        # 24,000 positions, and the last 16 of 3,000 end too early.
        assert abs(one.of_task.value) < 0.02 and abs(one.of_text.value) < 0.02
    true = {one.length: one.committed for one in right if one.arm == ALL}
    assert true[1] == pytest.approx(1.7, rel=0.01) and true[2] == pytest.approx(2.19, rel=0.01)
    both = model_errors(table_of(lambda rng, n: np.where(rng.random(n) < 0.5, 1, 17)), [4, 16])
    for one in both:
        expected = {4: 3.0, 16: 9.0}[one.length]
        assert one.committed == pytest.approx(expected, rel=0.03)
        if one.length == 4:  # a = 8 / 8.5 promises 4.45 tokens
            assert one.of_task.value == pytest.approx(0.48, abs=0.03)
            assert one.of_text.low > 0.3


def test_a_texts_own_acceptance_explains_what_differs_between_texts() -> None:
    hands = iter([0.8, 0.2] * 4)
    table = table_of(lambda rng, n: rng.geometric(next(hands), n))
    errors = {one.length: one for one in model_errors(table, [1, 8]) if one.arm == ALL}
    assert abs(errors[8].of_text.value) < 0.02 < abs(errors[8].of_task.value)


def test_errors_and_speeds_are_written(ground: Path) -> None:
    file = ground / "one.json"
    body = measure_errors(GeometricErrorArgs(traces=ground / "heldout", json=file))
    assert json.loads(file.read_text()) == body
    assert len(body["errors"]) == 3 * (2 * 3 + 1), "6 tokens were traced"
    assert "ngram:8" in markdown(file) and body["environment"]["cpu"]
    with pytest.raises(DraftgymError, match="length"):
        model_errors(user_table(), [7])
    few = {"users": (2, 3), "count": 2, "steps": 3, "decisions": 2, "repeats": 2}
    args = SchedulerSpeedArgs(traces=ground / "known", **few, json=file)
    found = measure_speed(args)
    assert [one["what"] for one in found["stepping"]] == ["lengths", "beliefs"] * 2
    assert {one["users"] for one in found["deciding"]} == {2, 3}
    for one in (*found["stepping"], *found["deciding"]):
        assert 0 < one["low"] <= one["median"] <= one["high"]
    assert json.loads(file.read_text()) == found
    with pytest.raises(DraftgymError, match="--repeats is 0"):
        measure_speed(replace(args, repeats=0))
