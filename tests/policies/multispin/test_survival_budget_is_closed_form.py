"""A path is verified from the probability on at which its row is worth its seconds."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.decoding.observers.observation import RouterMemory
from draftgym.policies.routers.survival import SurvivalPolicy

LEVELS = (0.03, 0.1, 0.3)
ARMS = [parse_arm(f"eagle3:3x6~{level}") for level in LEVELS]
FREE = Curve((0.0,), (0.0,))
COSTS = CostModel(
    {},
    {10: Curve((1.0, 7.0), (1.0, 1.6)), 1010: Curve((1.0, 7.0), (1.0, 2.8))},
    {"eagle3": FREE, "ngram": FREE},
    {"eagle3": FREE, "ngram": FREE},
    {"eagle3": {3: FREE}},
)
"""A row costs 0.1 seconds behind 10 positions and 0.3 behind 1010."""


def chosen(policy: SurvivalPolicy, context: int, last: tuple[int, int] | None = None) -> int:
    """The probability's index; `last` is the arm and the tokens of the round before."""
    memory, at = RouterMemory(policy.arms), np.array([context])
    if last is not None:
        memory.update(np.array([last[0]]), np.array([last[1]]), at)
    signals = memory.signals(np.zeros((1, 4), np.float32), at, np.ones(1))
    return int(policy.predict({"signals": signals[0]})[0])


@pytest.mark.parametrize(
    ("price", "context", "level"),
    [(1.0, 10, 0.1), (0.2, 10, 0.03), (9.0, 10, 0.3), (1.0, 1010, 0.3), (0.3, 1010, 0.1)],
)
def test_paths_must_be_likelier_where_rows_are_dear(
    price: float, context: int, level: float
) -> None:
    policy = SurvivalPolicy(ARMS, COSTS, price)
    assert LEVELS[chosen(policy, context)] == level
    assert policy.price(context) * policy.row_seconds(context) == pytest.approx(
        price * (0.1 if context == 10 else 0.3)
    )


def test_an_account_of_ones_own_is_tokens_over_seconds_of_full_drafts() -> None:
    policy = SurvivalPolicy(ARMS, COSTS)
    assert chosen(policy, 10) == 1 and policy.price(10) == pytest.approx(1.0)  # plain: 1 a second
    for arm, tokens in ((0, 4), (2, 2)):
        chosen(policy, 10, (arm, tokens))
    assert (policy.tokens, policy.seconds) == (6, pytest.approx(3.2))
    assert policy.price(10) == pytest.approx(6 / 3.2)
    assert SurvivalPolicy(ARMS, COSTS, 2.0).price(10) == 2.0


def test_in_a_cascade_the_part_that_differs_is_what_pays() -> None:
    arms = [parse_arm(f"ngram:16~0.6>eagle3:3x6~{level}") for level in LEVELS]
    policy = SurvivalPolicy(arms, COSTS, 1.0)
    assert policy.row_seconds(10) == pytest.approx(0.1)
    assert LEVELS[chosen(policy, 10)] == 0.1 and LEVELS[chosen(policy, 1010)] == 0.3
