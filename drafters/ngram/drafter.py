"""Prompt lookup: the cheapest drafter copies what followed the same words earlier in the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch

from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape, MatchFacts
from draftgym.decoding.verify.proposal import Proposal


@dataclass
class NgramState:
    """Index of the text so far.

    Attributes:
        length: How many positions are indexed.
        last_seen: For every n-gram, the position behind its most recent occurrence.
    """

    length: int = 0
    last_seen: dict[tuple[int, ...], int] = field(default_factory=dict)


class NgramDrafter(Drafter):
    """Proposes the continuation of the most recent earlier occurrence of the last few tokens.

    Longer matches are tried first. The proposal is deterministic, so it needs no target and no
    training; where nothing matches it is empty and the round is plain decoding.

    Placeholders of images are the same token over and over, whatever the image shows: they are
    neither matched nor copied.

    Args:
        longest: Longest n-gram to match.
        shortest: Shortest n-gram to match.
        max_draft_length: Most tokens to copy.
        never: Token ids that it neither matches nor copies (`Target.image_tokens`).
    """

    def __init__(
        self,
        longest: int = 4,
        shortest: int = 2,
        max_draft_length: int = 16,
        never: frozenset[int] = frozenset(),
    ) -> None:
        self.name = "ngram"
        self.longest, self.shortest = longest, shortest
        self.max_draft_length = max_draft_length
        self.never = never

    @property
    def fingerprint(self) -> str:
        """Its settings."""
        never = "".join(f"-not{token}" for token in sorted(self.never))
        return f"ngram-{self.shortest}-{self.longest}{never}"

    def new_state(self, capacity: int) -> NgramState:
        """An empty index."""
        return NgramState()

    def catch_up(self, state: NgramState, context: DraftContext, full: bool = False) -> int:
        """Indexes n-grams that end before the newest token (which has no continuation yet).

        There is no network, so `full` has nothing to add. A context that has become shorter is
        indexed anew.
        """
        tokens = context.token_ids
        stop = len(tokens) - 1
        if stop < state.length:
            state.length = 0
            state.last_seen.clear()
        start = state.length
        for end in range(start, stop):
            if tokens[end + 1] in self.never:  # an earlier occurrence may go on with text
                continue
            for size in range(self.shortest, self.longest + 1):
                if end + 1 >= size:
                    state.last_seen[tuple(tokens[end + 1 - size : end + 1])] = end + 1
        state.length = stop
        return stop - start

    def propose(self, state: NgramState, context: DraftContext, shape: DraftShape) -> Proposal:
        """Copies a chain; each token gets log-probability 0 (it is a sure guess)."""
        _, found = self._match(state, context, shape)
        return Proposal.chain(torch.tensor(found, dtype=torch.long), torch.zeros(len(found)))

    def facts(self, state: NgramState, context: DraftContext, shape: DraftShape) -> MatchFacts:
        """Length of the match and number of tokens; its score is the latter, for it is sure."""
        size, found = self._match(state, context, shape)
        return MatchFacts(size, len(found), float(len(found)))

    def _match(
        self, state: NgramState, context: DraftContext, shape: DraftShape
    ) -> tuple[int, Sequence[int]]:
        """How many tokens matched, and what followed."""
        tokens = context.token_ids
        newest = tokens[-self.longest :]
        for size in range(min(self.longest, len(newest)), self.shortest - 1, -1):
            if not self.never.isdisjoint(newest[-size:]):
                continue
            follows = state.last_seen.get(tuple(newest[-size:]))
            if follows is not None:
                return size, self._text(tokens[follows : follows + shape.depth])
        return 0, ()

    def _text(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens before the first placeholder."""
        if not self.never:
            return tokens
        return list(takewhile(lambda token: token not in self.never, tokens))
