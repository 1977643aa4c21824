"""The routing benchmark: everyone plays the same texts, nobody beats the optimum, work is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import benchmarks.routers
from benchmarks.routing import RoutingArgs, compare_routers
from decoding.drafting import Drafter
from decoding.errors import DraftgymError
from decoding.target import Target
from rollouts.prompt_sets import Prompt, load_prompts
from rollouts.shards import ShardWriter
from rollouts.trace import TraceSet
from rollouts.trace_file import trace_table
from tests.tiny import ARMS
from tests.traces import tiny_traces


def prompts(first: int, count: int) -> list[Prompt]:
    """Prompts of two categories in turn."""
    kinds = ("chat", "code")
    return [Prompt(f"p{i}", kinds[i % 2], (f"{i}",)) for i in range(first, first + count)]


def save(traces: TraceSet, folder: Path) -> Path:
    folder.mkdir()
    with ShardWriter(folder, partial(trace_table, origin=traces.origin), 99) as writer:
        for text in traces.texts:
            writer.add(text)
    return folder


@pytest.fixture(scope="module")
def args(
    target: Target, drafters: dict[str, Drafter], tmp_path_factory: pytest.TempPathFactory
) -> RoutingArgs:
    root = tmp_path_factory.mktemp("routing")
    learn = tiny_traces(target, drafters, prompts=prompts(0, 8), max_new_tokens=24)
    test = tiny_traces(target, drafters, prompts=prompts(50, 4), max_new_tokens=24)
    warm = tiny_traces(target, drafters, 1.0, prompts=prompts(50, 4), max_new_tokens=24)
    return RoutingArgs(
        traces=save(learn, root / "traces"),
        heldout=save(test, root / "heldout"),
        sampled=save(warm, root / "sampled"),
        transfer=True,
        pair=("eagle3:3", "dflash:4x8"),
        seeds=2,
        rounds=64,
        run=root / "run",
        threads=1,
        json=root / "figures.json",
    )


@pytest.fixture(scope="module")
def figures(args: RoutingArgs) -> dict[str, Any]:
    return compare_routers(args)


def test_nobody_beats_the_exact_optimum(figures: dict[str, Any]) -> None:
    for judged in (figures["heldout"], figures["sampled"], *figures["transfer"].values()):
        optimum = judged["knowing"]["exact optimum"]
        assert optimum["share_of_possible"] == pytest.approx(1.0)
        rows = [*judged["routers"].values(), *judged["knowing"].values()]
        assert all(row["tokens_per_second"] <= optimum["tokens_per_second"] + 1e-9 for row in rows)


def test_the_reference_is_the_best_single_arm_of_the_same_texts(figures: dict[str, Any]) -> None:
    judged = figures["heldout"]
    gains = {name: judged["routers"][name]["gain"][0] for name in ARMS}
    assert max(gains, key=lambda name: gains[name]) == judged["best_single"]
    assert gains[judged["best_single"]] == pytest.approx(0.0)
    known = judged["knowing"]
    assert known["best arm of each category"]["gain"][0] >= 0
    assert (
        known["best arm of each category"]["gain"][0] <= known["best arm of each prompt"]["gain"][0]
    )


def test_every_router_is_there_with_its_seeds(figures: dict[str, Any]) -> None:
    routers = figures["heldout"]["routers"]
    for name in ("ppo", "dqn", "advantage", "random", "neural eagle3:3/dflash:4x8"):
        row = routers[name]
        assert len(row["gain_by_seed"]) == 2
        assert row["gain"][0] == row["gain_by_seed"][row["median_seed"]]
        assert sum(row["arm_shares"]) == pytest.approx(1.0, abs=1e-3)
    assert {"ucb", "ucb-time", "entropy eagle3:3/dflash:4x8"} <= set(routers)
    assert set(figures["transfer"]) == {"chat", "code"}


def test_what_was_trained_is_not_trained_again(
    args: RoutingArgs, figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train_neural", "train_advantage"):
        monkeypatch.setattr(benchmarks.routers, name, None)
    again = compare_routers(args)
    written = json.loads(args.json.read_text())
    assert written["heldout"] == again["heldout"] == figures["heldout"]


def test_held_out_prompts_are_not_learned_from(
    args: RoutingArgs, target: Target, drafters: dict[str, Drafter], tmp_path: Path
) -> None:
    held_out = load_prompts("heldout")[0].question_id
    leaked = tiny_traces(target, drafters, prompts=[Prompt(held_out, "chat", ("3",))])
    with pytest.raises(DraftgymError, match="held-out prompts"):
        compare_routers(replace(args, traces=save(leaked, tmp_path / "leaked")))


def test_a_comparison_without_seeds_is_refused(args: RoutingArgs) -> None:
    with pytest.raises(DraftgymError, match="--seeds"):
        compare_routers(replace(args, seeds=0))
