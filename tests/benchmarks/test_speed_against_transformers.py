"""The comparison with transformers: same texts, times of what they say, no work lost."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.report import markdown
from benchmarks.system import against_transformers as bench
from benchmarks.system.contenders import ASSISTED, GENERATE, LOOKUP, Contender, Timed, our_contender
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.rollouts.report.statistics import Work, speed_ratio
from tests.tiny_text import save_prompts, save_target


@pytest.fixture
def args(tmp_path: Path) -> bench.AgainstArgs:
    return bench.AgainstArgs(
        json=tmp_path / "speed.json",
        policies=("ngram:3",),
        assistant=save_target(tmp_path / "small", seed=1),
        prompts=str(save_prompts(tmp_path / "prompts.jsonl")),
        max_new_tokens=12,
        target=str(save_target(tmp_path / "target")),
        dtype="float32",
        threads=1,
    )


def test_everybody_writes_the_same_texts_and_a_killed_run_goes_on(
    args: bench.AgainstArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    original = bench.write_turn

    def dies(contenders: Any, ids: Tensor, turn: int, limit: int) -> dict[str, Any]:
        if len(turns) == 4:
            raise KeyboardInterrupt
        turns.append(turn)
        return original(contenders, ids, turn, limit)

    monkeypatch.setattr(bench, "write_turn", dies)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(args)
    with pytest.raises(DraftgymError, match="started with other max_new_tokens"):
        bench.measure(replace(args, max_new_tokens=13))
    turns.clear()
    result = bench.measure(args)
    assert turns == [4, 5], "only what was missing is written, in the turn that was due"
    everybody = [GENERATE, ASSISTED, LOOKUP, "plain", "ngram:3"]
    assert [(r["category"], r["contender"]) for r in result["rows"]] == [
        (category, name) for category in ("chat", "code", "math", "all") for name in everybody
    ]
    for row in result["rows"]:
        assert row["identical_texts"] == row["prompts"] == (6 if row["category"] == "all" else 2)
        assert row["tokens"] == 12 * row["prompts"]
    assert result["environment"]["assistant_settings"]["num_assistant_tokens"] == 20
    assert args.json.is_file() and not list(args.json.parent.glob("*.partial.jsonl"))
    assert "| 1.00 (1.00 to 1.00) |" in markdown(args.json), "generate() against itself"


def test_without_an_assistant_its_row_is_left_out(
    args: bench.AgainstArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench.measure(replace(args, assistant=None, per_category=1))
    assert ASSISTED not in {row["contender"] for row in result["rows"]}
    assert "--assistant" in capsys.readouterr().err


def slow(tokens: list[int], seconds: float, decode_seconds: float | None) -> Contender:
    """Writes `tokens` in known times."""
    return lambda ids, max_new_tokens: Timed(tokens, seconds, decode_seconds)


def test_figures_follow_from_the_times() -> None:
    contenders = {GENERATE: slow([1, 2, 3, 4], 2.0, None), "ours": slow([1, 2, 3, 5], 1.0, 0.5)}
    texts = [bench.write_turn(contenders, torch.arange(3), turn, 4) for turn in range(3)]
    records = [{"category": c, "texts": t} for c, t in zip("aab", texts, strict=True)]
    made = bench.make_rows(records, list(contenders))
    rows = {(r["category"], r["contender"]): SimpleNamespace(**r) for r in made}
    ours, reference = rows["all", "ours"], rows["all", GENERATE]
    assert (ours.tokens, ours.seconds, ours.tokens_per_second) == (12, 3.0, 4.0)
    assert (ours.ratio, ours.ratio_low, ours.ratio_high) == (2.0, 2.0, 2.0)
    assert (ours.p10, ours.p50, ours.p90) == (4.0, 4.0, 4.0)
    assert ours.decode_tokens_per_second == 6.0, "three tokens after the first, in half a second"
    assert reference.decode_tokens_per_second is None
    assert (ours.identical_texts, reference.identical_texts) == (0, 3)
    assert (rows["a", "ours"].prompts, rows["b", "ours"].prompts) == (2, 1)


def test_our_times_are_those_of_the_whole_call(target: Target) -> None:
    ours = our_contender(SpeculativeDecoder(target, {}, PlainPolicy()))
    start = time.perf_counter()
    text = ours(torch.arange(4, 40), 24)
    whole = time.perf_counter() - start
    assert text.decode_seconds is not None
    assert 0 < text.decode_seconds < text.seconds < whole
    assert len(text.tokens) == 24


def test_the_interval_is_paired() -> None:
    reference = [Work(100, seconds) for seconds in (1.0, 2.0, 4.0, 8.0, 16.0)]
    twice = [Work(one.tokens, one.seconds / 2) for one in reference]
    exact = speed_ratio(twice, reference)
    assert (exact.value, exact.low, exact.high) == pytest.approx((2, 2, 2)), "spread cancels out"
    mixed = [
        Work(one.tokens, one.seconds / factor)
        for one, factor in zip(reference, (1, 3, 1, 3, 1), strict=True)
    ]
    interval = speed_ratio(mixed, reference)
    assert interval.value == pytest.approx(500 / sum(w.seconds for w in mixed) * 31 / 500)
    assert 1 <= interval.low < interval.value < interval.high <= 3
    assert speed_ratio(mixed, reference) == interval, "the same seed, the same interval"
    with pytest.raises(ValueError, match="paired"):
        speed_ratio(mixed[1:], reference)


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    rng = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        noise = torch.rand(40, generator=rng)
        mine = [Work(100, 1 / (1 + value)) for value in noise.tolist()]
        interval = speed_ratio(mine, [Work(100, 1.0)] * 40)
        truth = 1 / torch.log(torch.tensor(2.0)).item()  # 1 over the mean of 1 / (1 + uniform)
        covered += interval.low <= truth <= interval.high
    assert 86 <= covered <= 100
