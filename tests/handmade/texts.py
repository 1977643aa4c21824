"""Small traces and cost models made by hand, for what is computed from traces alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.rollouts.traces.trace import ArmTrace, TextTrace, TraceOrigin, TraceSet

LAGS = {"a": 1, "b": 2, "c": 1}
"""Drafters of handmade traces."""


def handmade_text(
    committed: Mapping[str, Sequence[int]],
    prompt_tokens: int = 4,
    category: str = "chat",
    question_id: str = "q0",
) -> TextTrace:
    """A text with given counterfactuals: what a round would commit, per arm and position."""
    length = len(next(iter(committed.values())))
    arms = {}
    for name, column in committed.items():
        whole = np.full(length, parse_arm(name).length)
        arms[name] = ArmTrace(np.array(column), whole, whole)
    return TextTrace(
        question_id,
        category,
        "hash",
        prompt_tokens,
        np.arange(length + 1),
        np.zeros((length + 1, 4), dtype=np.float32),
        np.zeros((length + 1, 2), dtype=np.float32),
        arms,
    )


def handmade_costs(
    step: float = 1.0,
    draft: float = 0.1,
    catch_up: Mapping[str, Sequence[float]] | None = None,
) -> CostModel:
    """Costs that are the same everywhere, but for catching up.

    Args:
        step: A pass of the target, whatever its rows.
        draft: A drafted token.
        catch_up: Per drafter, seconds by backlog from 0 on; by default nothing.
    """
    known = {name: (catch_up or {}).get(name, [0.0, 0.0]) for name in LAGS}
    return CostModel(
        {},
        {1: Curve((1.0,), (step,))},
        {name: Curve((0.0, 16.0), (0.0, 16 * draft)) for name in LAGS},
        {name: Curve(tuple(map(float, range(len(c)))), tuple(c)) for name, c in known.items()},
    )


def handmade_set(
    texts: Sequence[TextTrace], model: CostModel | None = None, max_new_tokens: int = 100
) -> TraceSet:
    """Texts with the same arms, of one origin."""
    origin = TraceOrigin(
        "handmade",
        "0" * 32,
        "float32",
        dict.fromkeys(LAGS, "1" * 16),
        LAGS,
        tuple(texts[0].arms),
        "greedy",
        0.0,
        0,
        max_new_tokens,
        model or handmade_costs(),
    )
    return TraceSet(origin, list(texts))


def random_text(
    rng: np.random.Generator,
    arms: Sequence[str],
    length: int,
    category: str = "chat",
    question_id: str = "q0",
) -> TextTrace:
    """A text of random counterfactuals."""
    left = length - np.arange(length)
    committed = {
        name: np.minimum(1 + rng.integers(0, parse_arm(name).length + 1, length), left).tolist()
        for name in arms
    }
    return handmade_text(committed, int(rng.integers(2, 9)), category, question_id)
