"""The losslessness check sees every difference, routing's pieces add up, switches are switches."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import markdown
from benchmarks.system import catch_up, losslessness, router_overhead, switch_cost
from benchmarks.system.catch_up import VARIANTS, BurstPolicy, CatchUpArgs
from benchmarks.system.losslessness import NEAR_TIE, LosslessnessArgs, larger_than_rounding, measure
from benchmarks.system.router_overhead import Sample, TimedRouterEnv, collect, summarise
from benchmarks.system.switch_cost import SwitchCostArgs
from draftgym.decoding.arms import parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target, load_target
from draftgym.rollouts.decode.interleaved import write_together
from tests.tiny import PROMPTS, numbered_target, tiny_costs
from tests.tiny_text import save_drafters, save_prompts, save_target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny target, its drafters and six prompts, saved."""
    folder = tmp_path_factory.mktemp("files")
    save_target(folder / "target")
    drafters = save_drafters(load_target(str(folder / "target"), "float32", 1), folder)
    return {
        "target": str(folder / "target"),
        "drafters": tuple(drafters),
        "prompts": str(save_prompts(folder / "prompts.jsonl")),
    }


@pytest.fixture
def args(files: dict[str, Any], tmp_path: Path) -> LosslessnessArgs:
    return LosslessnessArgs(
        json=tmp_path / "result.json",
        max_new_tokens=12,
        policies=("eagle3", "ngram"),
        threads=1,
        **files,
    )


def test_plain_decodings_texts_are_counted_per_mode_and_policy(args: LosslessnessArgs) -> None:
    result = measure(args)
    counts = {
        (r["mode"], r["policy"]): (r["prompts"], r["identical_texts"]) for r in result["rows"]
    }
    policies = ("plain", "eagle3", "ngram")
    assert counts == {(m, p): (6, 6) for m in ("greedy", "coupled") for p in policies}
    assert json.loads(args.json.read_text()) == result
    assert list(args.json.parent.iterdir()) == [args.json], "nothing unfinished is left"
    assert "| greedy | ngram | 6 | 72 | 6 | 0 | 0 |" in markdown(args.json)


def test_a_killed_run_goes_on_and_finds_the_same(
    args: LosslessnessArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(replace(args, json=args.json.with_name("whole.json")))
    decoded: list[int] = []

    def dies(*arguments: Any) -> dict[str, list[int]]:
        if len(decoded) == 8:  # six greedy prompts, two coupled ones
            raise KeyboardInterrupt
        decoded.append(len(decoded))
        return write_together(*arguments)

    monkeypatch.setattr(losslessness, "write_together", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(args)
    with args.json.with_name("result.json.partial.jsonl").open("a") as file:
        file.write('{"mode": "cou')  # a kill in the middle of a line
    with pytest.raises(DraftgymError, match="started with other max_new_tokens"):
        measure(replace(args, max_new_tokens=13))
    decoded.clear()
    result = measure(args)
    assert len(decoded) == 4, "only what was missing is decoded"
    assert result["rows"] == whole["rows"]


def test_a_different_text_is_reported_with_its_margin(
    args: LosslessnessArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def garbled(*arguments: Any) -> dict[str, list[int]]:
        texts = write_together(*arguments)
        if len(written) == 3:
            texts["ngram"][5] += 1
        written.append(len(written))
        return texts

    monkeypatch.setattr(losslessness, "write_together", garbled)
    result = measure(args)
    assert [(d["mode"], d["policy"], d["index"]) for d in result["differences"]] == [
        ("greedy", "ngram", 5)
    ]
    assert all(d["margin"] > NEAR_TIE for d in result["differences"])
    assert len(larger_than_rounding(result["differences"])) == 1
    rows = {(r["mode"], r["policy"]): r for r in result["rows"]}
    assert rows["greedy", "ngram"]["identical_texts"] == 5
    assert rows["greedy", "eagle3"]["identical_texts"] == 6


def test_only_near_ties_are_put_down_to_rounding() -> None:
    margins = [0.0, NEAR_TIE, 2 * NEAR_TIE, None]
    kept = larger_than_rounding([{"margin": margin} for margin in margins])
    assert [one["margin"] for one in kept] == [2 * NEAR_TIE, None]


def test_routings_pieces_add_up_to_the_step(
    target: Target, drafters: dict[str, Drafter], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered = numbered_target(target)
    policy, _ = router_overhead.choose_policy(None, numbered, drafters)
    arms = [str(arm) for arm in policy.arms]
    env = TimedRouterEnv(
        target=numbered,
        drafters=drafters,
        arms=arms,
        prompts=PROMPTS,
        max_new_tokens=24,
        latency=tiny_costs(numbered, drafters),
    )
    ticks = count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    samples = collect(env, policy, seed=0)
    assert {sample.arm for sample in samples} == set(arms)
    assert all(min(s.round, s.observe, s.predict, s.bookkeeping) > 0 for s in samples)
    pieces = sum(s.round + s.routing for s in samples)
    assert len(samples) * 8 < pieces < next(ticks), "no tick is counted twice"


def test_shares_compare_routing_with_the_round() -> None:
    result = summarise([Sample("plain", 0.1, 0.001, 0.0005, 0.0005)] * 4)
    assert result["share_of_round"]["routing"]["total"] == pytest.approx(0.02)
    assert result["arms"]["plain"]["share"] == pytest.approx(0.02)
    assert result["below_limit"]
    assert not summarise([Sample("plain", 0.1, 0.002, 0.001, 0.001)] * 4)["below_limit"]


@pytest.fixture
def switching(files: dict[str, Any], tmp_path: Path) -> SwitchCostArgs:
    return SwitchCostArgs(
        json=tmp_path / "switching.json",
        arms=("eagle3:2", "dflash:2"),
        contexts=(16, 100_000),
        backlogs=(1, 12, 40),
        repeats=2,
        threads=1,
        dtype="float32",
        target=files["target"],
        drafters=files["drafters"],
    )


@pytest.fixture
def catching_up(files: dict[str, Any], tmp_path: Path) -> CatchUpArgs:
    return CatchUpArgs(
        json=tmp_path / "catch_up.json",
        burst=3,
        per_category=1,
        max_new_tokens=24,
        threads=1,
        dtype="float32",
        **files,
    )


def test_switch_costs_cover_the_cells_that_are_possible(switching: SwitchCostArgs) -> None:
    result = switch_cost.measure(switching)
    cells = result["switch_cost"]
    short, long = sorted({cell["context"] for cell in cells})
    assert short == 16 and 40 < long < 512, "shortened to the target's limit"
    for arm in switching.arms:
        for prefill in ("kv", "full"):
            mine = [c for c in cells if (c["arm"], c["prefill"]) == (arm, prefill)]
            found = [(c["context"], c["backlog"]) for c in mine]
            assert found == [(16, 1), (16, 12), (long, 1), (long, 12), (long, 40)]
    for cell in cells:
        share = cell["switch_ms"]["p50"] / cell["round_ms"]["p50"]
        assert cell["share"]["p50"] == pytest.approx(share)
        assert 0 < cell["switch_ms"]["p10"] <= cell["switch_ms"]["p90"]
    assert switching.json is not None
    assert json.loads(switching.json.read_text()) == json.loads(json.dumps(result))


@pytest.mark.slow
def test_all_variants_play_the_same_rounds(catching_up: CatchUpArgs) -> None:
    for one in catch_up.measure(catching_up)["decoding"].values():
        rows = one["variants"]
        assert list(rows) == list(VARIANTS)
        assert len({(row["tokens"], row["rounds"]) for row in rows.values()}) == 1
        assert one["identical_texts"] == one["prompts"] == 3
        assert rows["eager kv"]["encoded_positions"] == rows["eager full"]["encoded_positions"]
        assert rows["eager kv"]["encoded_positions"] > rows["lazy kv"]["encoded_positions"]
        assert one["mean_backlog_at_a_switch"] > 1
        ratio = one["ratios"]["lazy kv / eager kv"]
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert catching_up.json is not None
    assert "lazy kv / eager full" in markdown(catching_up.json)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arms": ("ngram:4",)}, "no keys and values"),
        ({"backlogs": (0,)}, "no positive number"),
        ({"repeats": 0}, "--repeats is 0"),
    ],
)
def test_switching_answers_mistakes(
    switching: SwitchCostArgs, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(DraftgymError, match=says):
        switch_cost.measure(replace(switching, **change))


def test_catching_up_answers_mistakes(catching_up: CatchUpArgs) -> None:
    with pytest.raises(DraftgymError, match="fewer than two"):
        catch_up.measure(replace(catching_up, between=("eagle3:2",)))
    with pytest.raises(DraftgymError, match="--burst is 0"):
        catch_up.measure(replace(catching_up, burst=0))


def test_bursts_have_the_length_they_are_said_to_have() -> None:
    arms = [parse_arm("eagle3:2"), parse_arm("dflash:2")]
    one, other = BurstPolicy(arms, 8, seed=1), BurstPolicy(arms, 8, seed=1)
    actions = [int(one.predict({})[0]) for _ in range(4000)]
    assert actions == [int(other.predict({})[0]) for _ in range(4000)]
    switches = sum(a != b for a, b in pairwise(actions))
    assert 4000 / switches == pytest.approx(8, rel=0.1)
