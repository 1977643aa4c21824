"""What a cell of users plays: texts, row by row, and what a round with a draft does there.

`ChainTable` knows it from traces; `draftgym.envs.cell.live.LiveTable` lets it happen. A shorter
chain is the beginning of a longer one. So one traced arm, the longest chain of a drafter, holds
every shorter draft exactly: at a position where the long chain has d tokens and a round with it
commits c, a draft of L tokens has `min(L, d)` of them and commits

    min(c, min(L, d) + 1).

Nothing is drawn, and no acceptance rate is assumed.

Notation: A = arms (one chain per drafter), C = categories, R = rows of all texts, one per token,
n = cells, K = places of users in each. A *task* is an arm with a category, `arm * C + category`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.multispin.beliefs import geometric_acceptance
from draftgym.policies.multispin.uplink import Floats
from draftgym.rollouts.traces.trace import TraceSet

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class TextFacts(ABC):
    """What cells and schedulers read of texts, whoever plays their rounds.

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
        signals: `draftgym.decoding.observers.observation.TEXT_SIGNALS`, float32 `[R, 4]`.
        longest: Longest draft that every arm may be asked for.

    Raises:
        DraftgymError: No chain, or two of one drafter.
    """

    signals: NDArray[np.float32]

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
    def confidence(self, arm: Ints, row: Ints, where: Mask) -> NDArray[np.float32]:
        """Probability that drafters give the first token of their draft; all have one shape.

        Args:
            arm: Whose chain.
            row: Where the round begins.
            where: Who tells; of others nothing is read, and they get 0, as where nothing is found.
        """

    @abstractmethod
    def ended(self, text: Ints, row: Ints) -> Mask:
        """Whose text ends with this row; all arrays have one shape."""

    @abstractmethod
    def text_acceptance(self) -> Floats:
        """Each text's likeliest constant acceptance over all its positions `[A, texts]`.

        This is the most that a model with one acceptance per prompt can know of it. It is of tokens
        that are asked for: one that prompt lookup does not find counts as rejected.
        """

    @abstractmethod
    def task_acceptance(self) -> Floats:
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

    def starts(self, category: Ints, uniform: Floats) -> Ints:
        """Random starts for `text`, from numbers in [0, 1)."""
        return np.asarray(uniform * self._size[category]).astype(np.int64)

    def steps(self, category: Ints, uniform: Floats) -> Ints:
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


class TextTable(TextFacts):
    """Texts, laid out for lookups of many users at once, with what their rounds come to."""

    foreseen = False
    """Whether rounds can be looked up without being played."""

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
    def committed(self, arm: Ints, row: Ints, drafted: Ints, where: Mask | None = None) -> Ints:
        """Tokens that a round commits whose draft has so many tokens, at least 1.

        Args:
            arm: Whose chain.
            row: Where the round began; no text's last row.
            drafted: What `drafted` returned, or less.
            where: Who is verified; None for all. Of others nothing is read, and they get 0.
        """


class ChainTable(TextTable):
    """Traced texts, laid out for lookups of many users at once.

    Args:
        traces: The texts; those of a single token have no round and are left out.
        arms: Chains, at most one per drafter, as text (`small:8`); None takes the longest traced
            chain of every drafter.

    Attributes:
        texts: The texts that have a round.
        question_ids: Their names `[texts]`.
        last: Row of each text's last token.
        logprobs: Log-probability that each drafter gave the tokens of its longest draft, float32
            `[A, R, longest]`; 0 behind its end, and of a drafter that has none.
        tokens: Token ids `[R]`.

    Raises:
        DraftgymError: No chain, two of one drafter, an arm that was not traced, no round, or traces
            that do not tell how sure target and drafters were.
    """

    foreseen = True

    def __init__(self, traces: TraceSet, arms: Sequence[str] | None = None) -> None:
        traces.require_confidence("a cell of users")
        chains = _chains(traces, arms)
        self.texts = [text for text in traces.texts if len(text)]
        if not self.texts:
            raise DraftgymError(
                "no text of these traces has a round to play",
                "trace prompts that the target answers at length, with --max-new-tokens 2 or more",
            )
        sizes = [len(text.tokens) for text in self.texts]
        super().__init__(
            chains,
            [text.category for text in self.texts],
            [text.prompt_tokens for text in self.texts],
            sizes,
            traces.origin.max_new_tokens,
        )
        self.question_ids = np.array([text.question_id for text in self.texts], object)
        self.last = self.first + sizes - 1
        self.signals = np.concatenate([text.signals for text in self.texts])
        self.tokens = np.concatenate([text.tokens for text in self.texts])
        self._committed = self._column("committed")
        self._drafted = self._column("drafted")
        self.logprobs = self._logprobs()

    def drafted(self, arm: Ints, row: Ints, lengths: Ints, where: Mask | None = None) -> Ints:
        """See `TextTable.drafted`."""
        found = np.minimum(lengths, self._drafted[arm, row])
        return found if where is None else np.where(where, found, 0)

    def confidence(self, arm: Ints, row: Ints, where: Mask) -> NDArray[np.float32]:
        """See `TextTable.confidence`."""
        found = where & (self._drafted[arm, row] > 0)
        return np.where(found, np.exp(self.logprobs[arm, row, 0]), np.float32(0))

    def committed(self, arm: Ints, row: Ints, drafted: Ints, where: Mask | None = None) -> Ints:
        """See `TextTable.committed`.

        One less is taken for accepted. Where a text ends with an accepted stop token that is one
        too few; the trace does not tell these rounds apart, and nothing follows them.
        """
        tokens = np.minimum(self._committed[arm, row], drafted + 1)
        return tokens if where is None else np.where(where, tokens, 0)

    def ended(self, text: Ints, row: Ints) -> Mask:
        """See `TextTable.ended`."""
        return np.asarray(row == self.last[text])

    def text_acceptance(self) -> Floats:
        """See `TextTable.text_acceptance`."""
        each = [[text] for text in range(len(self.texts))]
        return np.stack([self._acceptance(arm, each) for arm in range(len(self.arms))])

    def task_acceptance(self) -> Floats:
        """See `TextTable.task_acceptance`."""
        members = [self.members(c).tolist() for c in range(len(self.categories))]
        return np.concatenate([self._acceptance(arm, members) for arm in range(len(self.arms))])

    def _column(self, part: str) -> Ints:
        """One number per arm and row `[A, R]`; a text's last row has no round."""
        return np.stack(
            [
                np.concatenate([np.append(getattr(t.arms[str(arm)], part), 0) for t in self.texts])
                for arm in self.arms
            ]
        )

    def _logprobs(self) -> NDArray[np.float32]:
        """What the attribute says."""
        rows = np.zeros((*self._drafted.shape, self.longest), np.float32)
        for index, arm in enumerate(self.arms):
            for first, text in zip(self.first.tolist(), self.texts, strict=True):
                if arm.drafter in text.logprobs:
                    told = text.logprobs[arm.drafter][:, : self.longest]
                    rows[index, first : first + len(text), : told.shape[1]] = told
        return rows

    def _acceptance(self, arm: int, groups: Sequence[Sequence[int]]) -> Floats:
        """Likeliest acceptance of groups of texts."""
        values = np.zeros(len(groups))
        for index, group in enumerate(groups):
            rows = np.concatenate([np.arange(self.first[t], self.last[t]) for t in group])
            accepted = np.minimum(self._committed[arm, rows] - 1, self._drafted[arm, rows])
            values[index] = geometric_acceptance(np.full(len(rows), self.longest), accepted)
        return values


def _chains(traces: TraceSet, arms: Sequence[str] | None) -> tuple[Arm, ...]:
    """The arms to use, of those that were traced."""
    if arms is not None:
        chosen = tuple(map(parse_arm, arms))
        traces.check_arms(chosen)
        return chosen
    chains = [arm for arm in map(parse_arm, traces.origin.arms) if arm.nodes is None]
    longest = {arm.drafter: arm for arm in sorted(chains, key=lambda arm: arm.length)}
    return tuple(longest.values())


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
