"""How much of each drafter's drafts a text's rounds have accepted, lately and in the long run.

A round tells a draft's acceptance only up to its length, so accepted tokens are set against those
that were judged: the accepted ones and the first that was not. Servers and their replay keep this
by the same code.

Notation: n = texts, D = drafters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

DECAYS = (0.7, 0.97)
"""Weights of the past, by round."""
FIRST = (1.0, 1.6)
"""Accepted and judged tokens before anything is known."""
EACH = (
    *(f"{what}_{span}" for span in ("lately", "overall") for what in ("accepted", "judged")),
    "last_accepted",
    "last_whole",
)


def acceptance_names(drafters: Sequence[str]) -> list[str]:
    """Names of `AcceptanceMemory.numbers`, in order."""
    return [f"{what}_{name}" for name in drafters for what in EACH]


class AcceptanceMemory:
    """What is remembered of some texts' drafts.

    Args:
        drafters: D.
        count: n.
    """

    def __init__(self, drafters: int, count: int = 1) -> None:
        self._counts = np.empty((count, drafters, len(DECAYS), 2))
        self._last = np.empty((count, drafters, 2))
        self.forget(np.arange(count))

    def forget(self, texts: Ints) -> None:
        """Starts these texts anew."""
        self._counts[texts], self._last[texts] = FIRST, 0.0

    def update(self, committed: Ints, depth: Ints, verified: Mask) -> None:
        """Takes in a round of every text.

        Args:
            committed: Tokens that each got `[n]`.
            depth: Tokens on the longest path that each drafter drafted `[n, D]`.
            verified: Whose drafts were verified `[n, D]`; nobody's where nothing was played.
        """
        told = verified & (depth > 0)
        accepted = np.minimum(committed[:, None] - 1, depth)
        fresh = np.stack([accepted, np.minimum(accepted + 1, depth)], -1)[:, :, None]
        decayed = np.array(DECAYS)[:, None] * self._counts + fresh
        np.copyto(self._counts, decayed, where=told[..., None, None])
        last = np.stack([accepted / 4, accepted == depth], -1)
        np.copyto(self._last, last, where=told[..., None])

    def numbers(self) -> NDArray[np.float32]:
        """By drafter, `EACH`: shares, logarithms of counts, the last draft `[n, 6 D]`."""
        accepted, judged = self._counts[..., 0], self._counts[..., 1]
        spans = np.stack([accepted / judged, np.log1p(judged) / 4], -1)
        each = [spans.reshape(*spans.shape[:2], -1), self._last]
        return np.concatenate(each, -1, dtype=np.float32).reshape(len(accepted), -1)
