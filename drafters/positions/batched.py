"""What the neural drafters share: they draft at many places of a text in one pass.

Drafting at one place, as decoding does, is the case of one. All drafts lie in the state's cache
behind the committed positions, and masks tell them apart: a row sees the committed positions before
its place, and of the rows behind them those of its own draft.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape, Place
from draftgym.decoding.model.compact.cache import ROWS_TOGETHER, KVCache
from draftgym.decoding.model.device import upload
from draftgym.decoding.verify.proposal import Proposal, on_host
from draftgym.drafters.positions.paths import Paths

Shapes = Sequence[Sequence[DraftShape]]
"""Per place what to draft, each at least one deep; columns are chains or trees throughout."""


class BatchDrafter(Drafter):
    """A drafter whose state is a cache of keys and values.

    Attributes:
        draft_rows: Most rows that one draft writes into the cache.
        draft_ids: Target ids of the draft vocabulary `[Vd]`; None where it is the target's.
        device: Where it computes: its target's.
    """

    draft_rows: int
    device: torch.device
    draft_ids: Tensor | None = None

    @abstractmethod
    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for so many rows, committed and drafted."""

    @abstractmethod
    def encode(
        self, cache: KVCache, context: DraftContext, start: int, stop: int, full: bool
    ) -> None:
        """Writes keys and values of positions `start .. stop - 1`; see `Drafter.catch_up`."""

    @abstractmethod
    def draft_at(
        self, cache: KVCache, context: DraftContext, lengths: Tensor, shapes: Shapes
    ) -> list[list[Proposal]]:
        """Drafts at several places; the rows of the drafts may stay in the cache.

        Args:
            cache: Caught up with the context.
            context: The whole text.
            lengths: Committed tokens at each place `[R]`, on the host.
            shapes: What to draft at each.

        Returns:
            Per place one proposal per shape, with draft distributions where it is the only place.
        """

    def new_state(self, capacity: int) -> KVCache:
        """An empty cache, with room for a draft behind the committed positions."""
        return self.new_cache(capacity + self.draft_rows)

    @torch.inference_mode()
    def catch_up(self, state: KVCache, context: DraftContext, full: bool = False) -> int:
        """Encodes all positions but the newest `lag`, many at once; see `Drafter.catch_up`.

        Of a context that has become shorter, the positions behind its end are forgotten.
        """
        start, stop = state.length, max(0, len(context.tokens) - self.lag)
        if stop <= start:
            state.roll_back(stop)
            return 0
        for first in range(start, stop, ROWS_TOGETHER):
            behind = min(stop, first + ROWS_TOGETHER)
            self.encode(state, context, first, behind, full)
            state.keep(behind - first)
        return stop - start

    def take_over(self, state: KVCache, length: int, capacity: int) -> KVCache:
        """Copies the keys and values that tokens and taps of the beginning decide."""
        taken = self.new_state(capacity)
        taken.start_like(state, max(0, min(state.length, length - self.lag)))
        return taken

    def propose(self, state: KVCache, context: DraftContext, shape: DraftShape) -> Proposal:
        """Drafts at the end of the text; see `Drafter.propose`."""
        return self._draft(state, context, [len(context.tokens)], [[shape]])[0][0]

    def propose_at_each(
        self, context: DraftContext, places: Sequence[Place], shapes: Sequence[DraftShape]
    ) -> list[list[Proposal]]:
        """Encodes the text once and drafts at many places per pass."""
        wanted = [place for place in places if place.room > 0]
        parts = -(-len(wanted) // context.rule.places_together)
        most = -(-len(wanted) // max(1, parts))
        state = self.new_cache(len(context.tokens) + most * self.rows_for(shapes))
        self.catch_up(state, context)
        drawn: list[list[Proposal]] = []
        for part in range(parts):
            chunk = wanted[part * most : (part + 1) * most]
            cut = [[shape.cut(place.room) for shape in shapes] for place in chunk]
            made = self._draft(state, context, [place.length for place in chunk], cut)
            read = iter(on_host([one for row in made for one in row]))
            drawn += [[next(read) for _ in row] for row in made]
        each = iter(drawn)
        return [next(each) if p.room > 0 else [Proposal.empty()] * len(shapes) for p in places]

    @torch.inference_mode()
    def _draft(
        self, state: KVCache, context: DraftContext, lengths: Sequence[int], shapes: Shapes
    ) -> list[list[Proposal]]:
        committed = state.length
        drawn = self.draft_at(state, context, torch.tensor(lengths), shapes)
        state.roll_back(committed)  # committed positions are encoded anew, from true inputs
        return drawn

    def rows_for(self, shapes: Sequence[DraftShape]) -> int:
        """Most rows that drafts of all of some shapes write into the cache at one place."""
        return self.draft_rows

    def own_rows(self, cache: KVCache, lengths: Tensor, rows: int) -> Paths | None:
        """Who sees whom when every place runs `rows` rows that see each other.

        Returns:
            Paths of `[R * rows]` rows; None where one place stands at the end of the committed
            positions, so that all is visible.
        """
        committed = lengths - self.lag
        if len(lengths) == 1 and int(committed[0]) == cache.length:
            return None
        own = torch.arange(len(lengths) * rows).view(-1, rows).repeat_interleave(rows, 0)
        before = committed.repeat_interleave(rows)
        return Paths(cache.length, upload(before, self.device), upload(own, self.device))
