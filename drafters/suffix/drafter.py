"""SuffixDecoding (arXiv 2411.04975): copies what most often followed the text's last tokens."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from pathlib import Path

import torch

from draftgym.decoding.drafting import (
    MAX_TREE_NODES,
    DraftContext,
    Drafter,
    DraftShape,
)
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.suffix.draft import Draft, Limits, best_draft
from draftgym.drafters.suffix.matches import Match, TextIndex
from draftgym.drafters.suffix.store import END, ResponseStore, load_store

LONGEST = 16


class SuffixDrafter(Drafter):
    """Proposes what most often followed earlier occurrences of the last few tokens.

    Every match of the text's end, up to `longest` tokens, is a guess of its own: the shorter ones
    occurred more often, the longer ones are more like what is written now. As in the paper the
    draft with the largest score is taken, where a score is the sum of the probabilities of all
    paths, and no draft has more than `factor` tokens per matched token. Occurrences are those in
    the text, prompt included, and those in a store of earlier responses. The proposal is
    deterministic and needs no network; where nothing matches it is empty.

    What differs from the paper: occurrences are counted when a draft is drawn, at most `MOST` of
    them, in place of counts in a tree; a share is of the occurrences that go on with a token; the
    store does not grow while texts are written, since a proposal must depend on the text alone;
    and where the score is small, no neural drafter takes over: that is a router's choice here. From
    the authors' later implementation is the least probability of a path.

    Defaults are of responses to training prompts: with dear rows the fastest, and nearly the same
    for `longest` from 8 to 32 and `least` from 0.1 to 0.4. Where rows are cheap, a larger `factor`
    accepts more.

    Placeholders of images are the same token over and over, whatever the image shows: they are
    neither matched nor copied.

    Args:
        longest: Most tokens to match.
        factor: Most drafted tokens for each matched one (the paper's alpha, in its MAX_SPEC).
        least: Smallest probability of a path; less likely ones are left out.
        max_draft_length: Most tokens on a path.
        never: Token ids that it neither matches nor copies (`Target.image_tokens`).
        store: Earlier responses; they match up to the length that they are sorted by.
    """

    def __init__(
        self,
        longest: int = LONGEST,
        factor: float = 2.0,
        least: float = 0.1,
        max_draft_length: int = 16,
        never: frozenset[int] = frozenset(),
        store: ResponseStore | None = None,
    ) -> None:
        self.name, self.looks_up = "suffix", True
        self.longest, self.factor, self.least = longest, factor, least
        self.max_draft_length, self.max_tree_nodes = max_draft_length, MAX_TREE_NODES
        self.never, self.store = never, store

    @property
    def fingerprint(self) -> str:
        """Its settings, and the store."""
        never = "".join(f"-not{token}" for token in sorted(self.never))
        store = f"-{self.store.fingerprint}" if self.store else ""
        settings = (self.longest, self.factor, self.least, self.max_draft_length)
        return f"suffix-{'-'.join(f'{one:g}' for one in settings)}{never}{store}"

    def new_state(self, capacity: int) -> TextIndex:
        """An empty index."""
        return TextIndex()

    def catch_up(self, state: TextIndex, context: DraftContext, full: bool = False) -> int:
        """Indexes all tokens but the newest (which has no continuation yet).

        There is no network, so `full` has nothing to add. A context that has become shorter is
        indexed anew.
        """
        return state.extend(context.token_ids)

    def propose(self, state: TextIndex, context: DraftContext, shape: DraftShape) -> Proposal:
        """Draws a greedy chain, or a tree of the likeliest paths.

        A token's log-probability is that of its share among what followed its parent.
        """
        draft = self._draft(state, context, shape)
        return Proposal(
            torch.tensor(draft.tokens, dtype=torch.long),
            torch.tensor(draft.parents, dtype=torch.long),
            torch.tensor(draft.logprobs),
            match=draft.match,
        )

    def _draft(self, state: TextIndex, context: DraftContext, shape: DraftShape) -> Draft:
        found = self._matches(state, context)
        if shape.is_tree:
            return best_draft(found, self._limits(shape.depth, shape.budget, shape.budget))
        # Chosen as the longest chain is, so that a shorter one is its beginning (traces need that).
        longest = self.max_draft_length
        return best_draft(found, self._limits(longest, longest, 1)).cut(shape.depth)

    def _limits(self, depth: int, nodes: int, width: int) -> Limits:
        return Limits(depth, nodes, width, self.factor, self.least, self.never | {END})

    def _matches(self, state: TextIndex, context: DraftContext) -> Iterable[Match]:
        """Those in the text and in the store, by falling length; of equal ones the text's first."""
        tokens = context.token_ids
        here = state.matches(tokens, self.longest, self.never)
        if self.store is None:
            return here
        stored = self.store.matches(tokens, self.never)
        return heapq.merge(here, stored, key=lambda match: -match.length)


def load_suffix(folder: Path, target: Target) -> SuffixDrafter:
    """The drafter with a store of earlier responses.

    Raises:
        DraftgymError: The store is damaged, or of another target.
    """
    return SuffixDrafter(never=target.image_tokens, store=load_store(folder, target, LONGEST))
