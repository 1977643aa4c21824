"""Traces made by hand: no model, any acceptance, costs that are easy to reckon with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.rollouts.traces.trace import ArmTrace, TextTrace, TraceOrigin, TraceSet

PROMPT_TOKENS = 3
COST = CostModel(
    host={},
    target_pass={1: Curve((1, 9), (1.0, 1.4)), 99: Curve((1, 9), (1.5, 2.5))},
    draft={"eagle3": Curve((1, 8), (0.2, 1.6)), "dflash": Curve((1, 8), (0.3, 0.4))},
    catch_up={"eagle3": Curve((0, 50), (0.0, 0.9)), "dflash": Curve((0, 50), (0.0, 0.3))},
)
"""EAGLE-3 pays per token, DFlash once; catching up matters."""

Committed = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.int64]]
"""Tokens that an arm would commit, from `TEXT_SIGNALS` and hidden states of the positions."""


def handmade_traces(
    arms: Mapping[str, Committed], texts: int = 6, length: int = 20, width: int = 16, seed: int = 0
) -> TraceSet:
    """Random texts on which arms (chains) accept as they are told.

    Args:
        arms: How much each commits; cut to its draft length and to the end of the text.
        texts: How many texts.
        length: New tokens of the longest; the others are one to four shorter.
        width: Of the hidden states.
        seed: Of everything random.
    """
    rng = np.random.default_rng(seed)
    made = [
        _text(f"handmade-{i}", arms, length - int(i % 5), length, width, rng) for i in range(texts)
    ]
    drafters = dict.fromkeys((arm.partition(":")[0] for arm in arms), "0" * 32)
    lags = {name: 2 if name == "eagle3" else 1 for name in drafters}
    origin = TraceOrigin(
        target="handmade",
        target_fingerprint="f" * 32,
        dtype="float32",
        drafters=drafters,
        lags=lags,
        arms=tuple(arms),
        verification="greedy",
        temperature=0.0,
        seed=seed,
        max_new_tokens=length,
        cost_model=COST,
    )
    return TraceSet(origin, made)


def _text(
    name: str,
    arms: Mapping[str, Committed],
    tokens: int,
    limit: int,
    width: int,
    rng: np.random.Generator,
) -> TextTrace:
    signals = rng.uniform(0, 3, (tokens, 4)).astype(np.float32)
    hidden = rng.normal(size=(tokens, width)).astype(np.float32)
    position = np.arange(tokens - 1)
    rows = {}
    for arm, committed in arms.items():
        drafted = np.minimum(int(arm.partition(":")[2]), limit - position - 2)
        wanted = np.minimum(committed(signals[:-1], hidden[:-1]), drafted + 1)
        rows[arm] = ArmTrace(np.minimum(wanted, tokens - 1 - position), drafted, drafted)
    return TextTrace(
        name, "chat", "0" * 12, PROMPT_TOKENS, rng.integers(4, 60, tokens), signals, hidden, rows
    )
