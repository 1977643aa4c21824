"""Under Multi-SPIN's own model our schedulers give its stated figures, and the shapes of others."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.report import markdown
from benchmarks.schedulers.paper import (
    MultispinPaperArgs,
    evaluate,
    figure_6,
    play_rules,
    rank_correlation,
    who_gets_band,
)
from benchmarks.schedulers.paper_rounds import ACCEPTANCE, Condition, Rounds, correction, play
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.radio.payload import make_payload
from draftgym.policies.multispin.problem import RoundProblem, VerificationCost
from draftgym.policies.schedulers.rules import RULES

STATED = {"multispin-llama2": 145.0, "multispin-qwen3.5": 153.0}
"""Figure 6, tokens a second."""
both = pytest.mark.parametrize("name", STATED)


@cache
def drawn(name: str) -> tuple[Rounds, Condition]:
    rounds = Rounds.draw(name, draws=12, rounds=3, users=20, seed=0)
    return rounds, Condition(rounds.setting.payload)


@both
def test_goodput_is_what_the_paper_states(name: str) -> None:
    figures = figure_6(*drawn(name))
    goodput = {rule: one["goodput"]["ratio"] for rule, one in figures.items()}
    assert goodput["heterogeneous"]["value"] == pytest.approx(STATED[name], rel=0.1)
    for rule in goodput:
        assert goodput[rule]["low"] <= goodput[rule]["value"] <= goodput[rule]["high"]
        assert goodput[rule]["value"] <= goodput["heterogeneous"]["value"]
    if name == "multispin-llama2":
        over = figures["p2p"]["heterogeneous_over_it"]["ratio"]["value"]
        assert over == pytest.approx(4.6, rel=0.15)


@both
def test_the_gain_over_fixed_shrinks_with_bandwidth(name: str) -> None:
    rounds, condition = drawn(name)
    gains = []
    for hertz in (5e6, 10e6, 20e6):
        played = play_rules(rounds, replace(condition, hertz=hertz), ("fixed", "heterogeneous"))
        gains.append(played["heterogeneous"].goodput.mean() / played["fixed"].goodput.mean())
    assert gains[0] > gains[1] > gains[2] > 1


@both
def test_homogeneous_compensates_and_heterogeneous_rewards(name: str) -> None:
    band = who_gets_band(*drawn(name))
    assert band["homogeneous"]["efficiency"]["high"] < -0.8  # weak channels get more
    assert band["homogeneous"]["seconds_per_token"]["low"] > 0.1  # so do slow devices
    assert abs(band["homogeneous"]["acceptance"]["value"]) < 0.15
    assert band["heterogeneous"]["acceptance"]["low"] > 0.4  # who is accepted gets more
    assert (
        band["heterogeneous"]["efficiency"]["low"] > band["homogeneous"]["efficiency"]["high"] + 0.1
    )


@both
def test_token_ids_alone_are_never_worse_than_distributions(name: str) -> None:
    rounds, condition = drawn(name)
    small = replace(condition, payload=make_payload("tokens", rounds.setting.vocabulary))
    for rule in ("fixed", "homogeneous", "heterogeneous"):
        less, more = (play(rounds, RULES[rule], case) for case in (small, condition))
        ratio = less.tokens / less.seconds / (more.tokens / more.seconds)
        assert ratio.min() > 1 and (less.bits < more.bits / 500).all()


def test_fewer_users_and_other_conditions_see_the_same_rounds() -> None:
    rounds, condition = drawn("multispin-llama2")
    again = Rounds.draw("multispin-llama2", draws=12, rounds=3, users=20, seed=0)
    assert np.array_equal(rounds.snr, again.snr)
    everybody, few = (rounds.problem(4, replace(condition, users=n)) for n in (20, 7))
    assert np.array_equal(few.efficiency, everybody.efficiency[:, :7])
    assert np.array_equal(few.draft_seconds[0], few.draft_seconds[2])  # a device stays
    assert not np.isin(few.efficiency[0], few.efficiency[1]).any()  # its channel does not
    assert np.isin(few.acceptance, list(ACCEPTANCE["multispin-llama2"].values())).all()
    assert np.array_equal(rounds.problem(4, condition, 1).efficiency, everybody.efficiency[1])


def test_p2p_is_each_user_alone_with_the_whole_band() -> None:
    rounds, condition = drawn("multispin-llama2")
    in_turn = play(rounds, RULES["p2p"], condition)
    alone = play(rounds, RULES["p2p"], condition, alone=True)
    assert alone.tokens.shape == (12, 60)
    assert alone.tokens.sum() == pytest.approx(in_turn.tokens.sum())
    assert alone.seconds.sum() == pytest.approx(in_turn.seconds.sum())


def test_corrections_are_expected_over_every_set_of_rejected_users() -> None:
    rng = np.random.default_rng(0)
    payload, accept, lengths = make_payload("scalar", 32_000), [0.9, 0.5, 0.0], np.array([3, 2, 1])
    problem = RoundProblem(
        0.02, payload.bits_per_token, rng.uniform(1, 6, 3), accept, 1e6, VerificationCost(0.02, 0.0)
    )  # fmt: skip
    alone = payload.correction_bits / (problem.efficiency * 1e6)
    seconds = bits = 0.0
    for rejected in product([False, True], repeat=3):
        who = np.array(rejected)
        chance = np.where(who, 1 - problem.acceptance**lengths, problem.acceptance**lengths).prod()
        seconds += chance * who.sum() * alone.max(where=who, initial=0.0)
        bits += chance * who.sum() * payload.correction_bits
    assert correction(problem, lengths, payload) == pytest.approx((seconds, bits))


def test_rank_correlation_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 20)), rng.integers(0, 4, (5, 20))
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert rank_correlation(a, b) == pytest.approx(expected)
    assert rank_correlation(a, np.ones((5, 20))).tolist() == [0] * 5


def test_the_script_prints_and_writes_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    args = MultispinPaperArgs(settings=("multispin-llama2",), draws=2, rounds=1, json=file)
    result = evaluate(args)
    assert json.loads(file.read_text()) == result
    figures = result["settings"]["multispin-llama2"]
    assert list(figures["figure_7"]) == ["5", "10", "15", "20"]
    assert list(figures["figure_8"])[-1] == "24"
    printed = capsys.readouterr().out
    for word in ("figure 6", "figure 7", "figure 8", "correlation", "decision", "payload", "145"):
        assert word in printed and word in markdown(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"draws": 0},
        {"rounds": 0},
        {"seed": -1},
        {"min_length": 2},
        {"settings": ()},
        {"settings": ("modes-qwen2.5",)},
        {"settings": ("multispin-lama2",)},
    ],
)
def test_impossible_arguments_are_refused_with_a_remedy(wrong: dict[str, object]) -> None:
    with pytest.raises(DraftgymError) as caught:
        evaluate(MultispinPaperArgs(**wrong))  # type: ignore[arg-type]
    assert caught.value.remedy
