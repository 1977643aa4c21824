"""What a chain of any length would have committed at any position of any traced text.

A shorter chain is the beginning of a longer one. So one traced arm, the longest chain of a drafter,
holds every shorter draft exactly: at a position where the long chain has d tokens and a round with
it commits c, a draft of L tokens has `min(L, d)` of them and commits

    min(c, min(L, d) + 1).

Nothing is drawn, and no acceptance rate is assumed.

Notation as in `draftgym.envs.cell.text_table`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.text_table import Ints, Mask, TextTable
from draftgym.policies.multispin.beliefs import geometric_acceptance
from draftgym.rollouts.traces.trace import TraceSet


class ChainTable(TextTable):
    """Traced texts, laid out for lookups of many users at once.

    Args:
        traces: The texts; those of a single token have no round and are left out.
        arms: Chains, at most one per drafter, as text (`small:8`); None takes the longest traced
            chain of every drafter.

    Attributes:
        texts: The texts that have a round.
        last: Row of each text's last token.
        logprobs: Log-probability that each drafter gave the tokens of its longest draft, float32
            `[A, R, longest]`; 0 behind its end, and of a drafter that has none.
        tokens: Token ids `[R]`.

    Raises:
        DraftgymError: No chain, two of one drafter, an arm that was not traced, or no round.
    """

    foreseen = True

    def __init__(self, traces: TraceSet, arms: Sequence[str] | None = None) -> None:
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
        self.last = self.first + sizes - 1
        self.signals = np.concatenate([text.signals for text in self.texts])
        self.tokens = np.concatenate([text.tokens for text in self.texts])
        self._committed = self._column("committed")
        self._drafted = self._column("drafted")
        self.logprobs = self._logprobs()

    def drafted(self, arm: Ints, row: Ints, lengths: Ints, where: Mask | None = None) -> Ints:
        """Tokens that drafters find; see `TextTable.drafted`."""
        return _only(where, np.minimum(lengths, self._drafted[arm, row]))

    def confidence(self, arm: Ints, row: Ints, where: Mask) -> NDArray[np.float32]:
        """How sure drafters are; see `TextTable.confidence`."""
        found = where & (self._drafted[arm, row] > 0)
        return np.where(found, np.exp(self.logprobs[arm, row, 0]), np.float32(0))

    def committed(self, arm: Ints, row: Ints, drafted: Ints, where: Mask | None = None) -> Ints:
        """Tokens that a round commits; see `TextTable.committed`.

        One less is taken for accepted. Where a text ends with an accepted stop token that is one
        too few; the trace does not tell these rounds apart, and nothing follows them.
        """
        return _only(where, np.minimum(self._committed[arm, row], drafted + 1))

    def ended(self, text: Ints, row: Ints) -> Mask:
        """Whose text ends with this row."""
        return np.asarray(row == self.last[text])

    def text_acceptance(self) -> NDArray[np.float64]:
        """Each text's likeliest constant acceptance; see `TextTable.text_acceptance`.

        It is of tokens that are asked for: one that prompt lookup does not find counts as rejected,
        for a scheduler has no more of it.
        """
        each = [[text] for text in range(len(self.texts))]
        return np.stack([self._acceptance(arm, each) for arm in range(len(self.arms))])

    def task_acceptance(self) -> NDArray[np.float64]:
        """The same over all texts of each task `[A * C]`."""
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


def _only(where: Mask | None, values: Ints) -> Ints:
    """0 elsewhere."""
    return values if where is None else np.where(where, values, 0)


def _chains(traces: TraceSet, arms: Sequence[str] | None) -> tuple[Arm, ...]:
    """The arms to use, of those that were traced."""
    traced = [parse_arm(arm) for arm in traces.origin.arms]
    chains = [arm for arm in traced if arm.nodes is None]
    if arms is None:
        longest = {arm.drafter: arm for arm in sorted(chains, key=lambda arm: arm.length)}
        chosen = tuple(longest.values())
    else:
        chosen = tuple(map(parse_arm, arms))
        traces.check_arms(chosen)
    return chosen
