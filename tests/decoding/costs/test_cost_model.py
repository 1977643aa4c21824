"""The cost model adds up pieces that were measured here."""

from __future__ import annotations

import pytest

from draftgym.decoding.arms import Arm, Asking
from draftgym.decoding.costs.calibration import calibrate
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.decoding.costs.pieces import ROWS
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.products import FEWEST
from draftgym.decoding.model.target import Target
from draftgym.drafters.tree import frontier_width

MODEL = CostModel(
    {"dtype": "float32"},
    {10: Curve((1, 5), (1.0, 2.0)), 20: Curve((1, 5), (3.0, 4.0))},
    {"eagle3": Curve((1, 4), (0.1, 0.4))},
    {"eagle3": Curve((0, 10), (0.0, 1.0))},
    {"eagle3": {1: Curve((4, 16), (0.1, 0.3)), 3: Curve((4, 16), (0.5, 0.7))}},
)


def test_a_curve_is_linear_in_between_and_never_falls_beyond() -> None:
    curve = Curve((1, 2, 4), (10.0, 20.0, 0.0))
    assert [curve(x) for x in (0, 1, 1.5, 2, 3, 4, 9)] == [10, 10, 15, 20, 10, 0, 0]
    assert Curve((3,), (7.0,))(1) == Curve((3,), (7.0,))(9) == 7.0
    assert [Curve((1, 2, 4), (5.0, 6.0, 10.0))(x) for x in (0, 5, 4000)] == [5, 12, 10 + 2 * 3996]


def test_a_round_costs_the_sum_of_its_pieces() -> None:
    arm = Arm("eagle3", 4)
    pass_of_five = 3.0  # halfway between the contexts: (2 + 4) / 2
    assert MODEL.round_seconds([Asking(arm, 4, 4, 5)], 4, 15) == pytest.approx(
        pass_of_five + 0.4 + 0.5
    )
    assert MODEL.round_seconds([Asking(arm, 4, 4)], 4, 15) == pytest.approx(pass_of_five + 0.4)


def test_a_tree_costs_what_its_shape_costs() -> None:
    arm = Arm("eagle3", 3, 10)
    pass_of_four = 2.75  # halfway between the contexts: (1.75 + 3.75) / 2
    deep = MODEL.round_seconds([Asking(arm, 3, 3)], 3, 15)
    assert deep == pytest.approx(pass_of_four + 0.6)  # the nodes it was given, not those it drew
    assert MODEL.round_seconds([Asking(arm, 3, 2)], 3, 15) == pytest.approx(pass_of_four + 0.4)
    assert MODEL.round_seconds([Asking(arm, 0, 0)], 0, 15) == MODEL.step_seconds(15)
    with pytest.raises(DraftgymError, match="dflash's trees"):
        MODEL.round_seconds([Asking(Arm("dflash", 3, 10), 3, 3)], 3, 15)


def test_a_plain_round_costs_one_target_step() -> None:
    assert MODEL.round_seconds([], 0, 15) == MODEL.step_seconds(15) == 2.0


def test_json_keeps_the_model() -> None:
    assert CostModel.from_json(MODEL.to_json()) == MODEL


@pytest.mark.slow
def test_calibration_covers_every_drafter_and_rises_with_work(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    model = calibrate(target, drafters, repeats=9)
    assert set(model.draft) == set(model.catch_up) == set(drafters)
    curves = [*model.target_pass.values(), *model.draft.values()]
    assert all(seconds > 0 for curve in curves for seconds in curve.seconds)
    assert all(curve.seconds[0] == 0 for curve in model.catch_up.values())
    assert max(model.target_pass) < target.context_limit
    for curve in model.target_pass.values():
        assert curve(max(ROWS)) > curve(1)
    eagle3 = model.draft["eagle3"]
    assert eagle3(8) > 2 * eagle3(1)  # autoregressive: a step per token
    assert model.catch_up["eagle3"](0) < model.catch_up["eagle3"](64)
    assert set(model.trees) == {"eagle3", "dflash", "small"}
    deep, flat = model.trees["eagle3"][16](16), model.trees["eagle3"][1](16)
    assert deep > 2 * flat  # a step per level


def test_calibration_measures_where_costs_jump(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    """Linear in between is only true between points on the same side of a jump."""
    model = calibrate(target, drafters, repeats=1, contexts=(64, 128))
    for curve in model.target_pass.values():
        assert {FEWEST - 1, FEWEST} <= set(curve.at)
    budgets = model.trees["eagle3"][2].at
    for nodes in range(4, 10):  # those of the usual small trees
        below, above = max(n for n in budgets if n <= nodes), min(n for n in budgets if n >= nodes)
        assert frontier_width(int(below)) == frontier_width(int(above)) == frontier_width(nodes)
