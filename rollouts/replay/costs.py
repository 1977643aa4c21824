"""What the rounds of a trace cost by a cost model, as arrays over positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.latency import CostModel
from draftgym.rollouts.traces.trace import TextTrace


def contexts(text: TextTrace) -> NDArray[np.int64]:
    """Positions in the target's cache when a round begins at each position `[n]`."""
    return text.prompt_tokens + np.arange(len(text))


def step_seconds(model: CostModel, text: TextTrace) -> NDArray[np.float64]:
    """One target step at each position `[n]`."""
    return np.array([model.step_seconds(int(context)) for context in contexts(text)])


def round_seconds(model: CostModel, text: TextTrace, arm: Arm) -> NDArray[np.float64]:
    """A round with this arm at each position `[n]`, without catching up."""
    if not arm.drafts:
        return step_seconds(model, text)
    made = text.arms[str(arm)]
    facts = np.column_stack([contexts(text), made.drafted, made.depth])
    # Catching up is asked for nothing here: what a backlog costs depends on earlier choices.
    seconds = [
        model.round_seconds(arm, int(drafted), int(context), 0, int(depth))
        for context, drafted, depth in facts
    ]
    return np.array(seconds) - (model.catch_up[arm.drafter](0) if len(seconds) else 0.0)


def catch_up_table(model: CostModel, drafter: str, longest: int) -> NDArray[np.float64]:
    """Seconds of catching up by backlog, for 0 to `longest` positions."""
    curve = model.catch_up[drafter]
    return np.interp(np.arange(longest + 1), curve.at, curve.seconds)


def backlogs(
    context: NDArray[np.int64], last_used: NDArray[np.int64], remaining: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Positions that a drafter must encode before it drafts.

    Args:
        context: Positions in the target's cache.
        last_used: The context at which it drafted last; `lag - 1` if it never did.
        remaining: Tokens that may still be written. With one left nothing is drafted.
    """
    return np.where(remaining > 1, context - last_used, 0)
