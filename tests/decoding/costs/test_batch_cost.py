"""Costs of ragged batches are measured here, interpolated, and extrapolated in contexts only."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.decoding.costs.batch_cost import BatchCost, measure_batches
from draftgym.decoding.costs.pieces import random_session
from draftgym.decoding.costs.timed_rounds import verification
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target

COST = BatchCost(
    {"dtype": "float32"},
    (10, 30),
    (1, 2),
    (1, 5),
    (((1.0, 2.0), (3.0, 4.0)), ((11.0, 12.0), (13.0, 14.0))),
)


def test_measured_points_come_back() -> None:
    for c, context in enumerate(COST.contexts):
        for u, users in enumerate(COST.users):
            for r, each in enumerate(COST.rows_each):
                assert COST(users, users * each, context) == COST.seconds[c][u][r]


def test_it_is_linear_in_between_and_in_contexts_beyond() -> None:
    assert COST(1, 3, 10) == pytest.approx(1.5)
    assert COST(2, 6, 20) == pytest.approx((3.5 + 13.5) / 2)
    assert COST(1, 1, 0) == 1.0 and COST(1, 1, 99) == 11.0 + 69 * 0.5
    table = COST(np.array([[1], [2]]), np.array([[5], [10]]), np.array([10.0, 20.0, 30.0]))
    assert table == pytest.approx(np.array([[2, 7, 12], [4, 9, 14]]))


@pytest.mark.parametrize(("users", "rows"), [(3, 3), (1, 6), (2, 11)])
def test_it_refuses_what_was_not_measured(users: int, rows: int) -> None:
    with pytest.raises(DraftgymError, match="were measured"):
        COST(users, rows, 10)


def test_json_keeps_it_and_nonsense_is_refused() -> None:
    assert BatchCost.from_json(COST.to_json()) == COST
    for text in ("{", "[]", "{}", COST.to_json().replace("14.0", '"x"')):
        with pytest.raises(DraftgymError, match="not a cost of batches") as caught:
            BatchCost.from_json(text)
        assert "measure" in caught.value.remedy
    with pytest.raises(ValueError, match="ascend"):
        BatchCost({}, (10,), (2, 4), (1,), (((1.0,), (2.0,)),))
    with pytest.raises(ValueError, match="axes"):
        BatchCost({}, (10,), (1, 4), (1,), (((1.0,),),))


def test_this_host_is_measured(target: Target) -> None:
    cost = measure_batches(target, users=(4,), rows_each=(16,), contexts=(32, 64), repeats=5)
    assert cost.users == (1, 4) and cost.rows_each == (1, 16) and cost.contexts == (32, 64)
    assert cost.host["target"] == target.fingerprint
    assert (np.array(cost.seconds) > 0).all()


def test_a_timed_verification_leaves_sessions_as_they_were(target: Target) -> None:
    sessions = [random_session(target, {}, 20 + i) for i in range(3)]
    before = [(session.tokens.tolist(), session.cache.length) for session in sessions]
    run = verification(sessions, [1, 7, 3])
    run()
    run()
    assert [(session.tokens.tolist(), session.cache.length) for session in sessions] == before
