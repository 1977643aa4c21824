"""What a chain of any length would have committed at any position of any traced text.

A shorter chain is the beginning of a longer one. So one traced arm, the longest chain of a drafter,
holds every shorter draft exactly: at a position where the long chain has d tokens and a round with
it commits c, a draft of L tokens has `min(L, d)` of them and commits

    min(c, min(L, d) + 1).

Nothing is drawn, and no acceptance rate is assumed.

Notation: A = arms (one chain per drafter), C = categories, R = rows of all texts, one per token.
A *task* is an arm with a category, `arm * C + category`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decoding.acceptance import geometric_acceptance
from decoding.arms import Arm, parse_arm
from decoding.errors import DraftgymError
from rollouts.trace import TraceSet

Ints = NDArray[np.int64]


class ChainTable:
    """Traced texts, laid out for lookups of many users at once.

    Args:
        traces: The texts; those of a single token have no round and are left out.
        arms: Chains, at most one per drafter, as text (`small:8`); None takes the longest traced
            chain of every drafter.

    Attributes:
        arms: The chains.
        texts: The texts that have a round.
        categories: Their categories, sorted.
        first, last: Rows of each text's first and last token.
        context: Tokens before and at a row, prompt included, less one: the target's cache `[R]`.
        remaining: Tokens that may follow a row `[R]`.
        signals: `decoding.observation.TEXT_SIGNALS`, float32 `[R, 4]`.
        logprobs: Log-probability that each drafter gave the tokens of its longest draft, float32
            `[A, R, longest]`; 0 behind its end, and of a drafter that has none.
        tokens: Token ids `[R]`.
        longest: Longest draft that every arm has been asked for.

    Raises:
        DraftgymError: No chain, two of one drafter, an arm that was not traced, or no round.
    """

    def __init__(self, traces: TraceSet, arms: Sequence[str] | None = None) -> None:
        self.arms = _chains(traces, arms)
        self.texts = [text for text in traces.texts if len(text)]
        if not self.texts:
            raise DraftgymError(
                "no text of these traces has a round to play",
                "trace prompts that the target answers at length, with --max-new-tokens 2 or more",
            )
        sizes = np.array([len(text.tokens) for text in self.texts])
        self.last = sizes.cumsum() - 1
        self.first = self.last + 1 - sizes
        position = np.concatenate([np.arange(size) for size in sizes])
        self.context = position + np.repeat([text.prompt_tokens for text in self.texts], sizes)
        self.limit = traces.origin.max_new_tokens
        self.remaining = self.limit - 1 - position
        self.signals = np.concatenate([text.signals for text in self.texts])
        self.tokens = np.concatenate([text.tokens for text in self.texts])
        self.longest = min(arm.length for arm in self.arms)
        self._committed = self._column("committed")
        self._drafted = self._column("drafted")
        self.logprobs = self._logprobs()
        self._group()

    def drafted(self, arm: Ints, row: Ints, lengths: Ints) -> Ints:
        """Tokens that drafters find when asked for `lengths`; all arrays have one shape."""
        return np.minimum(lengths, self._drafted[arm, row])

    def confidence(self, arm: Ints, row: Ints) -> NDArray[np.float32]:
        """Probability that drafters give the first token of their draft; 0 where they find none."""
        found = self._drafted[arm, row] > 0
        return np.where(found, np.exp(self.logprobs[arm, row, 0]), np.float32(0))

    def committed(self, arm: Ints, row: Ints, drafted: Ints) -> Ints:
        """Tokens that a round commits whose draft has so many tokens, at least 1.

        One less is taken for accepted. Where a text ends with an accepted stop token that is one
        too few; the trace does not tell these rounds apart, and nothing follows them.

        Args:
            arm: Whose chain.
            row: Where the round begins; no text's last row.
            drafted: What `drafted` returned, or less.
        """
        return np.minimum(self._committed[arm, row], drafted + 1)

    def task(self, arm: Ints, category: Ints) -> Ints:
        """Index of the task."""
        return arm * len(self.categories) + category

    @property
    def task_names(self) -> list[str]:
        """`category/arm`, by index."""
        return [f"{category}/{arm}" for arm in self.arms for category in self.categories]

    def text_acceptance(self) -> NDArray[np.float64]:
        """Each text's likeliest constant acceptance over all its positions `[A, texts]`.

        It is of tokens that are asked for: one that prompt lookup does not find counts as rejected,
        for a scheduler has no more of it. This is the most that a model with one acceptance per
        prompt can know of it.
        """
        each = [[text] for text in range(len(self.texts))]
        return np.stack([self._acceptance(arm, each) for arm in range(len(self.arms))])

    def task_acceptance(self) -> NDArray[np.float64]:
        """The same over all texts of each task `[A * C]`."""
        members = [self.members(c).tolist() for c in range(len(self.categories))]
        return np.concatenate([self._acceptance(arm, members) for arm in range(len(self.arms))])

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

    def _column(self, part: str) -> Ints:
        """One number per arm and row `[A, R]`; a text's last row has no round."""
        return np.stack(
            [
                np.concatenate([np.append(getattr(t.arms[str(arm)], part), 0) for t in self.texts])
                for arm in self.arms
            ]
        )

    def _logprobs(self) -> NDArray[np.float32]:
        """See the attribute."""
        rows = np.zeros((*self._drafted.shape, self.longest), np.float32)
        for index, arm in enumerate(self.arms):
            for first, text in zip(self.first.tolist(), self.texts, strict=True):
                if arm.drafter in text.logprobs:
                    told = text.logprobs[arm.drafter][:, : self.longest]
                    rows[index, first : first + len(text), : told.shape[1]] = told
        return rows

    def _acceptance(self, arm: int, groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Likeliest acceptance of groups of texts."""
        values = np.zeros(len(groups))
        for index, group in enumerate(groups):
            rows = np.concatenate([np.arange(self.first[t], self.last[t]) for t in group])
            accepted = np.minimum(self._committed[arm, rows] - 1, self._drafted[arm, rows])
            values[index] = geometric_acceptance(np.full(len(rows), self.longest), accepted)
        return values

    def _group(self) -> None:
        """Sorts the texts by category."""
        named = [text.category for text in self.texts]
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


def _chains(traces: TraceSet, arms: Sequence[str] | None) -> tuple[Arm, ...]:
    """The arms to use, checked."""
    traced = [parse_arm(arm) for arm in traces.origin.arms]
    chains = [arm for arm in traced if arm.nodes is None]
    if arms is None:
        longest = {arm.drafter: arm for arm in sorted(chains, key=lambda arm: arm.length)}
        chosen = tuple(longest.values())
    else:
        chosen = tuple(map(parse_arm, arms))
        traces.check_arms(chosen)
    if not chosen or any(arm.nodes is not None or not arm.drafts for arm in chosen):
        raise DraftgymError(
            f"devices draft chains, not {', '.join(map(str, chosen)) or 'nothing'}",
            "use chains that were traced, such as small:8",
        )
    if len({arm.drafter for arm in chosen}) < len(chosen):
        raise DraftgymError(
            f"several chains of one drafter: {', '.join(map(str, chosen))}",
            "give the longest alone; it holds the shorter ones",
        )
    return chosen
