"""The routing benchmark: everyone plays the same texts, nobody beats the optimum, work is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.routers.contenders
from benchmarks.routers.joint import FAMILIES, Tuner
from benchmarks.routers.routing import RoutingArgs, compare_routers, tables
from draftgym.decoding.arms import Arm, Cascade, Graft, parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.prompts.sets import Prompt, load_prompts
from draftgym.rollouts.replay.oracle import walk_single
from draftgym.rollouts.replay.pricing import PLAIN_ARM, price_traces
from draftgym.rollouts.traces.file import read_traces
from tests.handmade.texts import handmade_costs, handmade_set, handmade_text
from tests.tiny import ARMS
from tests.traces import save_traces, tiny_traces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def args(routing_run: RoutingArgs) -> RoutingArgs:
    return routing_run


@pytest.fixture(scope="module")
def figures(args: RoutingArgs) -> dict[str, Any]:
    return dict(json.loads(args.json.read_text()))


def test_nobody_beats_the_exact_optimum(figures: dict[str, Any]) -> None:
    for judged in (figures["heldout"], figures["sampled"], *figures["transfer"].values()):
        optimum = judged["knowing"]["exact optimum"]
        if optimum["gain"][0] > 1e-9:  # costs are measured: there may be nothing to win
            assert optimum["share_of_possible"] == pytest.approx(1.0)
        rows = [*judged["routers"].values(), *judged["knowing"].values()]
        assert all(row["tokens_per_second"] <= optimum["tokens_per_second"] + 1e-9 for row in rows)


def test_the_reference_is_the_best_single_arm_of_the_same_texts(figures: dict[str, Any]) -> None:
    judged = figures["heldout"]
    alone = {*figures["arms"], *figures["families"].values()}
    gains = {name: judged["routers"][name]["gain"][0] for name in alone}
    assert max(gains, key=lambda name: gains[name]) == judged["best_single"]
    assert gains[judged["best_single"]] == pytest.approx(0.0)
    known = judged["knowing"]
    assert known["best arm of each category"]["gain"][0] >= 0
    assert (
        known["best arm of each category"]["gain"][0] <= known["best arm of each prompt"]["gain"][0]
    )


def test_every_router_is_there_with_its_seeds(figures: dict[str, Any]) -> None:
    routers = figures["heldout"]["routers"]
    kinds = ("", ", twice a round", ", mixed temperatures")
    learned = [f"{name}{kind}" for name in ("ppo", "dqn") for kind in kinds]
    for name in (*learned, "advantage", "random", "neural eagle3:3/dflash:4x8"):
        row = routers[name]
        assert len(row["gain_by_seed"]) == 2
        assert row["gain"][0] == row["gain_by_seed"][row["median_seed"]]
        assert sum(row["arm_shares"]) == pytest.approx(1.0, abs=1e-3)
    assert {"ucb", "ucb-time", "entropy eagle3:3/dflash:4x8"} <= set(routers)
    trained = {name for name, row in routers.items() if row["trained"]}
    assert {"ppo", "dqn", "advantage", "neural eagle3:3/dflash:4x8"} <= trained
    assert not trained & {*ARMS, "random", "ucb", "entropy eagle3:3/dflash:4x8"}
    assert set(figures["transfer"]) == {"chat", "code"}


def test_a_cascade_pays_for_lookups_in_vain() -> None:
    text = handmade_text({"a:2": [3, 1, 1, 1, 2, 1], "b:2": [1, 1, 2, 1, 1, 1]})
    found = np.array([2, 0, 0, 0, 2, 0])
    text = replace(text, arms=text.arms | {"a:2": replace(text.arms["a:2"], drafted=found)})
    model = handmade_costs(1.0, 0.1, {"a": np.arange(20) * 0.01})
    cascade = parse_arm("a:2>b:2")
    (priced,) = price_traces(handmade_set([text], model), [cascade])
    walked = walk_single(priced, cascade)
    assert walked.tokens == 6 and walked.rounds == 3
    asked = 0.01 * (4 + 3 + 1)  # in every round, also in vain
    assert walked.seconds == pytest.approx(3 * (1 + 2 * 0.1) + asked)


def test_the_best_cascade_and_graft_of_the_training_traces_are_among_the_arms(
    figures: dict[str, Any],
) -> None:
    best = [arm for arm in map(parse_arm, figures["arms"]) if len(arm.parts) > 1]
    assert [type(arm) for arm in best] == [Cascade, Graft]
    assert [*map(str, best)] == [figures["families"][name] for name in ("cascade", "graft")]


def test_rules_of_engines_and_papers_stand_in_the_table_by_family(
    figures: dict[str, Any],
) -> None:
    rows = figures["heldout"]["routers"]
    assert [*figures["families"]] == [*FAMILIES]
    for name in ("tapout", "survival", "survival in cascade", "survival, own account"):
        assert not rows[name]["trained"]
    shown = {cells[0] for cells in tables(figures)[0].rows}
    for family, arm in figures["families"].items():
        assert arm in rows and any(arm in who and family in who for who in shown)
    assert any(name.startswith("entropy ngram:4") and ">dflash" in name for name in rows)


def test_a_setting_is_tuned_until_no_other_is_faster(args: RoutingArgs) -> None:
    traces = read_traces(args.traces)
    tuner = Tuner(traces, [*map(parse_arm, traces.origin.arms)])
    found = tuner.families()
    for name, family in FAMILIES.items():
        parts = {part.drafter == "ngram": part.whole for part in found[name].parts}
        settings = product(family.least, family.likely, family.sure)
        others = [family.arm(parts[False], *one, parts.get(True, PLAIN_ARM)) for one in settings]
        near = [other for other in others if _settings_apart(other, found[name]) == 1]
        assert near and all(tuner.speed(found[name]) >= tuner.speed(other) for other in near)
        if family.kind is Cascade:
            assert tuner.speed(found["cascade"]) >= tuner.speed(found[name])


def _settings_apart(one: Arm, other: Arm) -> int:
    pairs = zip(one.parts, other.parts, strict=True)
    return sum((a.least != b.least) + (a.sure != b.sure) for a, b in pairs)


def test_what_was_trained_is_not_trained_again(
    args: RoutingArgs,
    figures: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("train_neural", "train_advantage"):
        monkeypatch.setattr(benchmarks.routers.contenders, name, None)
    again = compare_routers(replace(args, json=tmp_path / "again.json", transfer=False))
    written = json.loads((tmp_path / "again.json").read_text())
    assert written["heldout"] == again["heldout"] == figures["heldout"]


def test_held_out_prompts_are_not_learned_from(
    args: RoutingArgs, target: Target, drafters: dict[str, Drafter], tmp_path: Path
) -> None:
    held_out = load_prompts("heldout")[0].question_id
    leaked = tiny_traces(target, drafters, prompts=[Prompt(held_out, "chat", ("3",))])
    with pytest.raises(DraftgymError, match="held-out prompts"):
        compare_routers(replace(args, traces=save_traces(leaked, tmp_path / "leaked")))


def test_routers_of_other_drafters_are_refused_before_anything_is_trained(
    args: RoutingArgs, figures: dict[str, Any], tmp_path: Path
) -> None:
    learned = read_traces(args.traces)
    changed = {**learned.origin.drafters, "eagle3": "other weights"}
    others = replace(learned, origin=replace(learned.origin, drafters=changed))
    before = {path: path.read_bytes() for path in args.run.rglob("policy.*")}
    with pytest.raises(DraftgymError, match=r"trained on other traces.*other weights"):
        compare_routers(replace(args, traces=save_traces(others, tmp_path / "others")))
    assert {path: path.read_bytes() for path in args.run.rglob("policy.*")} == before


def test_a_comparison_without_seeds_is_refused(args: RoutingArgs) -> None:
    with pytest.raises(DraftgymError, match="--seeds"):
        compare_routers(replace(args, seeds=0))
