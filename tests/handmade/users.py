"""Cells over handmade traces: two drafters, two categories, no model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable
from draftgym.rollouts.traces.trace import TraceSet
from tests.handmade.traces import handmade_traces


def user_traces(texts: int = 9, length: int = 24) -> TraceSet:
    """Random texts on which a small LM and prompt lookup accept differently."""
    rng = np.random.default_rng(0)
    made = handmade_traces(
        {
            "small:6": lambda signals, hidden: rng.geometric(0.3, len(signals)),
            "ngram:8": lambda signals, hidden: rng.geometric(0.6, len(signals)),
        },
        texts,
        length,
    )
    named = [
        replace(text, category=("chat", "code")[index % 3 == 2])
        for index, text in enumerate(made.texts)
    ]
    return replace(made, texts=named)


def user_table(texts: int = 9, length: int = 24) -> ChainTable:
    """The same, laid out."""
    return ChainTable(user_traces(texts, length))


def a_slow_place(cell: Cell) -> NDArray[np.bool_]:
    """A place of the first cell whose device needs time to draft, `[K]`; the others do not matter.

    Raises:
        IndexError: Nobody drafts with a language model: reset the cell with another seed.
    """
    return np.arange(cell.shape[1]) == np.flatnonzero(cell.users.token_seconds[0] > 0)[0]


MODES = {
    "synchronous": CellSettings(users=3),
    "churn": CellSettings(users=3, leaving=0.6, absence=0.5),
    "window": CellSettings(users=3, window=0.01),
    "everything": CellSettings(
        setting="modes-qwen2.5",
        users=3,
        window=0.02,
        leaving=0.8,
        absence=2.0,
        report_rounds_old=2,
        report_error_db=2.0,
        deadline=1.0,
    ),
}
"""Cells of different kinds, by name."""
