"""What choosing arms wins is counted right, and `benchmarks.routers.arms` says it."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from benchmarks.routers.arms import ArmsArgs, compare_arms
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.replay.oracle import total, walk_optimal, walk_single
from draftgym.rollouts.replay.pricing import PLAIN_ARM, PricedText, one_each, price_traces
from draftgym.rollouts.replay.prizes import duel, largest_pair, prize, walk_texts
from draftgym.rollouts.traces.file import trace_table
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.texts import handmade_costs, handmade_set, handmade_text, random_text

NAMES = ("a:1", "a:3", "b:2", "c:4")
ARMS = [*map(parse_arm, NAMES), PLAIN_ARM]


def random_set() -> TraceSet:
    """Three categories of three texts each."""
    rng = np.random.default_rng(3)
    model = handmade_costs(1.0, 0.15, {name: np.arange(60) * 0.02 for name in "abc"})
    categories = ("chat", "code", "math") * 3
    texts = [random_text(rng, NAMES, 40, c, f"q{i}") for i, c in enumerate(categories)]
    return handmade_set(texts, model)


@pytest.fixture
def texts() -> list[PricedText]:
    return price_traces(random_set(), ARMS)


def test_duels_count_by_hand() -> None:
    text = handmade_text({"a:3": [3, 1, 1, 1], "b:2": [1, 2, 1, 1]})
    texts = price_traces(handmade_set([text]), [Arm("a", 3), Arm("b", 2)])
    result = duel(texts, Arm("a", 3), Arm("b", 2))
    assert (result.first, result.equal, result.second) == (0.25, 0.5, 0.25)
    assert duel(texts, Arm("b", 2), Arm("a", 3), range(0, 2)).equal == 0.0


def test_who_knows_more_is_never_slower(texts: list[PricedText]) -> None:
    found = prize(walk_texts(texts))
    single = {arm: total([walk_single(text, arm) for text in texts]).seconds for arm in ARMS}
    assert found.best == min(single, key=lambda arm: single[arm])
    assert found.single.seconds == pytest.approx(single[found.best])
    known = (found.optimal, found.by_prompt, found.by_category, found.single)
    assert [one.seconds for one in known] == sorted(one.seconds for one in known)
    assert found.optimal.seconds <= found.greedy.seconds
    assert {one.tokens for one in known} == {9 * 40}
    assert found.gain > 0
    assert found.gain == pytest.approx(found.single.seconds / found.optimal.seconds - 1)


def test_the_best_arm_of_a_category_is_the_best_single_arm_there(texts: list[PricedText]) -> None:
    walks = walk_texts(texts)
    overall = prize(walks)
    apart = [prize([w for w in walks if w.category == name]) for name in ("chat", "code", "math")]
    assert overall.by_category.seconds == pytest.approx(sum(one.single.seconds for one in apart))
    for one in apart:
        assert one.by_category == one.single


def test_the_largest_pair_is_the_largest_of_all(texts: list[PricedText]) -> None:
    gains = {
        pair: prize(walk_texts([text.only(pair) for text in texts])).gain
        for pair in combinations(ARMS, 2)
    }
    assert largest_pair(texts) == max(gains, key=lambda pair: gains[pair])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The random set on disk, in two shards."""
    traces = random_set()
    folder = tmp_path / "traces"
    folder.mkdir()
    for number, part in enumerate((traces.texts[:4], traces.texts[4:])):
        table = trace_table(part, traces.origin)
        pyarrow.parquet.write_table(table, folder / f"part-{number:05d}.parquet")
    return folder


def test_the_benchmark_says_what_the_traces_hold(
    folder: Path, texts: list[PricedText], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ArmsArgs(traces=folder, json=folder.parent / "new" / "arms.json")
    figures = compare_arms(args)
    assert json.loads(json.dumps(figures)) == json.loads(args.json.read_text())
    assert figures["texts"] == {"chat": 3, "code": 3, "math": 3}
    code = [text for text in texts if text.category == "code"]
    mine = total([walk_single(text, Arm("b", 2)) for text in code])
    assert figures["arms"]["b:2"]["code"]["acceptance_length"] == 120 / mine.rounds
    plain = total([walk_single(text, PLAIN_ARM) for text in code])
    assert figures["arms"]["b:2"]["code"]["predicted_speedup"] == plain.seconds / mine.seconds
    found, whole = prize(walk_texts(texts)), figures["prizes"]["all"]["all arms and plain"]
    assert whole["gain_in_time"] == pytest.approx(found.gain)
    fewest = total([walk_optimal(one_each(text)) for text in texts]).acceptance_length
    assert whole["oracle_acceptance_length"] == fewest
    assert figures["choices"]["all"]["single"] == str(found.best)
    assert figures["choices"]["all"]["greedy_oracle"] == found.gain_of(found.greedy)
    assert figures["choices"]["all"]["exact_oracle"] == pytest.approx(found.gain)
    printed = capsys.readouterr().out
    assert "exact oracle" in printed
    assert f"{100 * found.gain:+.1f}" in printed


def test_the_benchmark_takes_fewer_arms_and_other_costs(folder: Path, tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text(handmade_costs(1.0, 1.0).to_json())
    args = ArmsArgs(traces=folder, json=tmp_path / "arms.json", arms=("b:2", "plain"))
    usual = compare_arms(args)
    assert list(usual["arms"]) == ["b:2"]
    dear = compare_arms(ArmsArgs(**{**vars(args), "cost_model": costs}))
    speedups = [one["arms"]["b:2"]["all"]["predicted_speedup"] for one in (usual, dear)]
    assert speedups[1] < speedups[0]
    with pytest.raises(DraftgymError, match="'b:7' is not in these traces"):
        compare_arms(ArmsArgs(traces=folder, arms=("b:7",)))
    costs.write_text("{}")
    with pytest.raises(DraftgymError, match="not a cost model"):
        compare_arms(ArmsArgs(traces=folder, cost_model=costs))
