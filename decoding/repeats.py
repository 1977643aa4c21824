"""How much of a text's end has been there before: what a copying drafter lives on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LONGEST = 16
"""Longest repeat that is told apart."""


class Repeats:
    """Follows a text and measures its repeats.

    The repeat at a token is the length of the longest run of tokens that ends there and also
    occurred earlier. Inside a copied passage it grows by one with every token.
    """

    def __init__(self) -> None:
        self._tokens = np.empty(0, dtype=np.int64)
        # Entry j: tokens that agree when the text so far is laid over the text up to j.
        self._runs = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> NDArray[np.int64]:
        """Takes in more of the text; returns the repeat at each new token, at most `LONGEST`."""
        lengths = []
        for token in tokens:
            longer = np.append(1, self._runs[:-1] + 1)[: len(self._tokens)]
            agree = np.where(self._tokens == token, longer, 0)
            lengths.append(min(LONGEST, int(agree.max(initial=0))))
            # A text laid over itself agrees all the way; that entry never counts.
            self._runs = np.append(agree, 0)
            self._tokens = np.append(self._tokens, token)
        return np.array(lengths, dtype=np.int64)
