"""Handmade traces for servers: chains of one network, and a lookup whose matches can be seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from draftgym.rollouts.traces.trace import ArmTrace, Drafts, TextTrace, TraceSet
from tests.handmade.traces import handmade_traces

LENGTHS = (1, 3, 5, 7)
ARMS = ["plain", *(f"small:{length}" for length in LENGTHS), "ngram:8"]


def served_traces(texts: int = 6, length: int = 30) -> TraceSet:
    """Where a text's first signal is high, the network's drafts are good, else they are not.

    Lookup finds something at a tenth of the positions, and the text goes on with six tokens of
    it. The kinds of texts take turns.
    """

    def made(signals: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return np.where(signals[:, 0] > 1.5, 6, 1) + (hidden[:, 0] > 0)

    def looked(signals: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return np.where(signals[:, 1] > 2.7, 7, 1)

    arms = {f"small:{one}": made for one in LENGTHS} | {"ngram:8": looked}
    traces = handmade_traces(arms, texts, length)
    return replace(traces, texts=[_with_matches(*one) for one in enumerate(traces.texts)])


def _with_matches(index: int, text: TextTrace) -> TextTrace:
    found = text.signals[:-1, 1] > 2.7
    arm = text.arms["ngram:8"]
    drafted = np.where(found, arm.drafted, 0)
    looked = ArmTrace(np.minimum(arm.committed, drafted + 1), drafted, drafted)
    return replace(
        text,
        category=("chat", "code")[index % 2],
        arms={**text.arms, "ngram:8": looked},
        matches={"ngram": 5 * found.astype(np.int64)},
        drafts={"ngram": Drafts(np.zeros((len(text), 8), np.int32))},
    )
