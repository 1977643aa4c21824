"""A machine that stands still at one text moves totals; it is told, and medians do not move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.decoder import DecodedRound, Generation
from draftgym.decoding.round import RoundRecord, RoundTimes
from draftgym.rollouts.decode.interleaved import DecodedText
from draftgym.rollouts.prompts.sets import Prompt
from draftgym.rollouts.report.as_json import report_json
from draftgym.rollouts.report.rows import Evaluation, make_rows
from draftgym.rollouts.report.stalls import Stall, find_stalls, stalls_told
from draftgym.rollouts.report.statistics import (
    Work,
    make_intervals,
    median_ratio,
    speed_ratio,
)

ROUNDS = 20
STALL = 67.0
"""Seconds, as it was once."""


def text(policy: str, prompt: int, rng: np.random.Generator) -> DecodedText:
    """A text of an arm with two drafted tokens or none, whose times vary by a tenth."""
    arm, kept = parse_arm("eagle3:2" if policy == "eagle3" else "plain"), 1 + (policy == "eagle3")
    rounds = []
    for index in range(ROUNDS):
        missed = 300 if index == 0 and arm.drafts else int(arm.drafts)
        caught = RoundTimes(0.001 * missed, 0.02 * arm.drafts, 0.0, 0.0)
        times = replace(caught, verify=0.1 * float(rng.uniform(0.95, 1.05)))
        drafted = [5] * 2 * arm.drafts
        record = RoundRecord(arm, 30, drafted, 2, kept - 1, [5] * kept, missed, times, [0])
        rounds.append(DecodedRound(record, 0.001))
    seconds = sum(one.decide_seconds + one.record.times.total for one in rounds)
    tokens = [5] * (1 + kept * ROUNDS)
    generation = Generation(tokens, 30, rounds, decode_seconds=seconds)
    return DecodedText(Prompt(f"q{prompt}", "chat", ("?",)), policy, generation)


def texts_of(stall: float) -> list[DecodedText]:
    """Ten prompts by both; the machine stands still in one round of `eagle3` at `q4`."""
    rng = np.random.default_rng(0)
    texts = [text(policy, prompt, rng) for prompt in range(10) for policy in ("plain", "eagle3")]
    generation = next(t for t in texts if (t.policy, t.prompt.question_id) == ("eagle3", "q4"))
    slow = generation.generation.rounds[7]
    times = replace(slow.record.times, verify=slow.record.times.verify + stall)
    generation.generation.rounds[7] = replace(slow, record=replace(slow.record, times=times))
    generation.generation.decode_seconds += stall
    return texts


def evaluation(stall: float) -> Evaluation:
    texts = texts_of(stall)
    rows = make_rows(texts, ["plain", "eagle3"])
    choices = {"plain": ["plain"], "eagle3": ["eagle3:2"]}
    return Evaluation({}, rows, [], texts, choices, [], find_stalls(texts))


def test_totals_move_and_medians_do_not() -> None:
    calm, stalled = (evaluation(stall) for stall in (0.0, STALL))
    before, after = (make_intervals(one)["eagle3", "all"] for one in (calm, stalled))
    assert after.speedup.value < 0.5 * before.speedup.value
    assert after.median_speedup.value == pytest.approx(before.median_speedup.value, rel=0.01)
    assert before.median_speedup.low <= after.median_speedup.value <= before.median_speedup.high
    row = next(one for one in stalled.rows if (one.policy, one.category) == ("eagle3", "all"))
    assert row.speedup_p50 == pytest.approx(after.median_speedup.value)
    told = next(one for one in report_json(stalled)["rows"] if one["policy"] == "eagle3")
    assert told["intervals"]["median_speedup"]["value"] == after.median_speedup.value


def test_the_text_is_named_with_the_seconds_and_no_other() -> None:
    """A first catching up of 300 positions takes long in every text, and is no stall."""
    assert find_stalls(texts_of(0.0)) == []
    (stall,) = find_stalls(texts_of(STALL))
    assert (stall.policy, stall.question_id, stall.rounds) == ("eagle3", "q4", 1)
    assert stall.seconds == pytest.approx(STALL, rel=0.01)
    assert report_json(evaluation(STALL))["stalls"][0]["question_id"] == "q4"
    assert stalls_told([Stall("eagle3", "q4", 1, 67.04)]) == [
        "eagle3: q4 stood still for 67.0 s in 1 round: totals count it, medians do not"
    ]


def test_a_text_that_stands_still_while_it_catches_up_is_named() -> None:
    texts = texts_of(0.0)
    generation = texts[1].generation
    slow = generation.rounds[9]
    times = replace(slow.record.times, catch_up=slow.record.times.catch_up + 5)
    generation.rounds[9] = replace(slow, record=replace(slow.record, times=times))
    generation.decode_seconds += 5
    assert [round(stall.seconds, 1) for stall in find_stalls(texts)] == [5.0]


def test_the_interval_of_a_median_is_that_of_resampled_medians() -> None:
    rng = np.random.default_rng(3)
    for count in (1, 2, 7, 12):
        mine = [Work(10, float(seconds)) for seconds in rng.uniform(0.5, 2, count)]
        reference = [Work(10, 1.0)] * count
        found = median_ratio(mine, reference)
        ratios = np.array([1 / one.seconds for one in mine])
        draws = np.random.default_rng(9).integers(count, size=(20_000, count))
        low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
        assert found.value == pytest.approx(np.median(ratios))
        assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)
    assert median_ratio(mine, mine) == speed_ratio(mine, mine)
    with pytest.raises(ValueError, match="paired prompts"):
        median_ratio(mine, mine[1:])
