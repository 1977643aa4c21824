"""Costs go on along their slope, the same wherever they are asked for, and the user is told."""

from __future__ import annotations

import numpy as np
import pytest

import draftgym.decoding.costs.cost_model as costs
from draftgym.decoding.arms import PLAIN, Arm, Asking
from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.cost_model import CostModel, Curve, note_extrapolation
from draftgym.rollouts.replay.pricing import catch_up_table, price_traces
from tests.handmade.traces import handmade_traces

ROWS = (1, 5)
MODEL = CostModel(
    {},
    {10: Curve(ROWS, (1.0, 2.0)), 30: Curve(ROWS, (2.0, 4.0))},
    {"eagle3": Curve((1, 4), (0.1, 0.4))},
    {"eagle3": Curve((0, 2, 8), (0.0, 0.3, 0.9))},
)


def test_passes_and_backlogs_grow_beyond() -> None:
    assert MODEL.target_seconds(1, 4000) == pytest.approx(2 + 3970 / 20)
    assert MODEL.target_seconds(3, 50) == pytest.approx(3 + 1.5)
    assert MODEL.target_seconds(9, 30) == pytest.approx(4 + 4 * 0.5)
    assert MODEL.catch_up["eagle3"](4000) == pytest.approx(0.9 + 3992 * 0.1)
    falling = CostModel({}, {10: Curve((1,), (3.0,)), 30: Curve((1,), (2.0,))}, {}, {})
    assert falling.step_seconds(4000) == 2.0, "no pass gets cheaper behind more positions"


def test_batches_of_one_cost_what_a_session_costs() -> None:
    seconds = tuple((curve.seconds,) for curve in MODEL.target_pass.values())
    batch = BatchCost({}, tuple(MODEL.target_pass), (1,), ROWS, seconds)
    for context in (0, 10, 17, 30, 31, 99, 4000):
        for rows in (1, 2, 5):
            assert batch(1, rows, context) == pytest.approx(MODEL.target_seconds(rows, context))


def test_replay_prices_as_the_model_does() -> None:
    table = catch_up_table(MODEL, "eagle3", 50)
    assert table == pytest.approx([MODEL.catch_up["eagle3"](n) for n in range(51)])
    arms = [Arm("eagle3", 3), Arm(PLAIN, 0)]
    traces = handmade_traces({"eagle3:3": lambda s, _: np.full(len(s), 2)}, texts=2, length=60)
    for text, priced in zip(traces.texts, price_traces(traces, arms, MODEL), strict=True):
        for position in (0, 30, len(priced) - 2):
            context = text.prompt_tokens + position
            made = text.arms["eagle3:3"]
            used = np.array([1])  # the drafter has to catch up on everything
            seconds = priced.round_seconds(position, used)
            assert seconds[1] == pytest.approx(MODEL.step_seconds(context))
            drafted, depth = int(made.drafted[position]), int(made.depth[position])
            assert seconds[0] == pytest.approx(
                MODEL.round_seconds(
                    [Asking(arms[0], drafted, depth, context - 1)], drafted, context
                )
            )


def test_it_is_said_once_that_figures_rest_on_extrapolation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(costs, "_told", set())
    note_extrapolation(MODEL, 8)
    assert capsys.readouterr().err == ""
    for longest in (40, 40, 50):
        note_extrapolation(MODEL, longest)
    [line] = capsys.readouterr().err.splitlines()
    assert "30 positions of context and 8 positions to catch up on" in line
    traces = handmade_traces({"eagle3:3": lambda s, _: np.full(len(s), 2)}, texts=2, length=60)
    monkeypatch.setattr(costs, "_told", set())
    price_traces(traces, [Arm("eagle3", 3)], MODEL)
    assert "measured up to" in capsys.readouterr().err
    assert MODEL.sureness()["measured_to"]["positions of context"] == 30
