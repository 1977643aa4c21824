"""What a cell of users plays: texts, row by row, and what a round with a draft does there.

`draftgym.envs.cell.chains.ChainTable` knows it from traces,
`draftgym.envs.cell.live_table.LiveTable` lets it happen.

Notation: A = arms (one chain per drafter), C = categories, R = rows of all texts, one per token,
n = cells, K = places of users in each. A *task* is an arm with a category, `arm * C + category`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class TextTable(ABC):
    """Texts, laid out for lookups of many users at once.

    Args:
        arms: The chains.
        categories: Category of each text.
        prompt_tokens: Length of each text's prompt.
        sizes: Rows of each text.
        limit: Tokens of a text at most.

    Attributes:
        arms: The chains.
        categories: Categories of the texts, sorted.
        first: Row of each text's first token.
        context: Tokens before and at a row, prompt included, less one: the target's cache `[R]`.
        remaining: Tokens that may follow a row `[R]`.
        limit: Tokens of a text at most.
        signals: `draftgym.decoding.observation.TEXT_SIGNALS`, float32 `[R, 4]`.
        longest: Longest draft that every arm may be asked for.

    Raises:
        DraftgymError: No chain, or two of one drafter.
    """

    signals: NDArray[np.float32]
    foreseen = False
    """Whether rounds can be looked up without being played."""

    def __init__(
        self,
        arms: Sequence[Arm],
        categories: Sequence[str],
        prompt_tokens: Sequence[int],
        sizes: Sequence[int],
        limit: int,
    ) -> None:
        check_chains(arms)
        self.arms, self.limit = tuple(arms), limit
        self.first = np.cumsum([0, *sizes[:-1]])
        position = np.concatenate([np.arange(size) for size in sizes])
        self.context = position + np.repeat(prompt_tokens, sizes)
        self.remaining = limit - 1 - position
        self.longest = min(arm.length for arm in self.arms)
        self._group(categories)

    @abstractmethod
    def drafted(self, arm: Ints, row: Ints, lengths: Ints, where: Mask | None = None) -> Ints:
        """Tokens that drafters find when asked for `lengths`; all arrays have one shape.

        Args:
            arm: Whose chain.
            row: Where the round begins; no text's last row.
            lengths: What each is asked for.
            where: Who begins a draft; None for all. Of others nothing is read, and they get 0.
        """

    @abstractmethod
    def confidence(self, arm: Ints, row: Ints, where: Mask) -> NDArray[np.float32]:
        """Probability that drafters give the first token of their draft; all have one shape.

        Args:
            arm: Whose chain.
            row: Where the round begins.
            where: Who tells; of others nothing is read, and they get 0, as where nothing is found.
        """

    @abstractmethod
    def committed(self, arm: Ints, row: Ints, drafted: Ints, where: Mask | None = None) -> Ints:
        """Tokens that a round commits whose draft has so many tokens, at least 1.

        Args:
            arm: Whose chain.
            row: Where the round began; no text's last row.
            drafted: What `drafted` returned, or less.
            where: Who is verified; None for all. Of others nothing is read, and they get 0.
        """

    @abstractmethod
    def ended(self, text: Ints, row: Ints) -> Mask:
        """Whose text ends with this row; all arrays have one shape."""

    @abstractmethod
    def text_acceptance(self) -> NDArray[np.float64]:
        """Each text's likeliest constant acceptance over all its positions `[A, texts]`.

        This is the most that a model with one acceptance per prompt can know of it.
        """

    @abstractmethod
    def task_acceptance(self) -> NDArray[np.float64]:
        """The same over all texts of each task `[A * C]`."""

    def task(self, arm: Ints, category: Ints) -> Ints:
        """Index of the task."""
        return arm * len(self.categories) + category

    @property
    def task_names(self) -> list[str]:
        """`category/arm`, by index."""
        return [f"{category}/{arm}" for arm in self.arms for category in self.categories]

    def members(self, category: int) -> Ints:
        """The texts of a category."""
        begin = self._begin[category]
        return np.asarray(self._members[begin : begin + self._size[category]])

    def text(self, category: Ints, start: Ints, step: Ints, served: Ints) -> Ints:
        """The text that a user reads next; it reads all of its category before any comes again.

        Args:
            category: The user's.
            start: Where in its category the user began; 0 to less than the category's size.
            step: How far it moves from text to text, from `steps`.
            served: Texts that it has had.
        """
        place = (start + step * served) % self._size[category]
        return np.asarray(self._members[self._begin[category] + place])

    def starts(self, category: Ints, uniform: NDArray[np.float64]) -> Ints:
        """Random starts for `text`, from numbers in [0, 1)."""
        return np.asarray(uniform * self._size[category]).astype(np.int64)

    def steps(self, category: Ints, uniform: NDArray[np.float64]) -> Ints:
        """Random steps for `text`, from numbers in [0, 1): coprime to the category's size."""
        choice = (uniform * self._coprime_count[category]).astype(np.int64)
        return np.asarray(self._coprime[category, choice])

    def _group(self, named: Sequence[str]) -> None:
        """Sorts the texts by category."""
        self.categories = sorted(set(named))
        category = np.array([self.categories.index(name) for name in named])
        self._members = np.argsort(category, kind="stable")
        self._size = np.bincount(category)
        self._begin = self._size.cumsum() - self._size
        coprime = [[n for n in range(1, s + 1) if math.gcd(n, s) == 1] for s in self._size.tolist()]
        self._coprime_count = np.array([len(row) for row in coprime])
        self._coprime = np.ones((len(coprime), int(self._coprime_count.max())), dtype=np.int64)
        for index, row in enumerate(coprime):
            self._coprime[index, : len(row)] = row


def check_chains(arms: Sequence[Arm]) -> None:
    """Raises `DraftgymError` unless these are chains, one per drafter."""
    if not arms or any(arm.nodes is not None or not arm.drafts for arm in arms):
        raise DraftgymError(
            f"devices draft chains, not {', '.join(map(str, arms)) or 'nothing'}",
            "use chains, such as small:8",
        )
    if len({arm.drafter for arm in arms}) < len(arms):
        raise DraftgymError(
            f"several chains of one drafter: {', '.join(map(str, arms))}",
            "give the longest alone; it holds the shorter ones",
        )
