"""Passes that several sessions share: one token for each, prompts and running texts together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from draftgym.decoding.model.compact.cache import ROWS_TOGETHER
from draftgym.decoding.model.compact.side_by_side import PlaceCache, Stores
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.interface import SequenceCache
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import verify_batch
from draftgym.decoding.session import Session, common_beginning
from draftgym.decoding.verify.proposal import Proposal

FEWEST_SHARED = 4
"""Tokens of a common beginning that are worth a copy."""


class SharedPasses:
    """Plain decoding of sessions of one target, whose caches lie side by side where they can.

    Args:
        target: The target.
    """

    def __init__(self, target: Target) -> None:
        decoder, self._stores = target.decoder, None
        if isinstance(decoder, Decoder):
            self._stores = Stores(decoder.shape, decoder.dtype, decoder.device)

    def new_cache(self, capacity: int) -> SequenceCache | None:
        """A cache for a session that is played here; None where it makes one of its own."""
        return None if self._stores is None else self._stores.open(capacity)

    def close(self, session: Session) -> None:
        """Leaves the place of a session that is finished to the next one."""
        if self._stores is not None and isinstance(session.cache, PlaceCache):
            self._stores.close(session.cache)

    @torch.inference_mode()
    def play(self, sessions: Sequence[Session]) -> None:
        """Commits one more token of every session: one pass, and one read.

        Args:
            sessions: None is finished. Those that have not begun read their prompts; long ones
                are read alone, as they take several passes.
        """
        together = sorted((one for one in sessions if one.unread < ROWS_TOGETHER), key=_order)
        for session in sessions:
            if session.unread >= ROWS_TOGETHER:
                session.prefill()
        if together:
            none = Proposal.empty()
            verified = verify_batch(together, [none] * len(together))
            for session, (output, verdict) in zip(together, verified, strict=True):
                session.commit(none, verdict, output)


def share_beginning(session: Session, others: Iterable[Session]) -> None:
    """Lets a session that has not begun take over what another has read of the same beginning."""
    common = [
        (common_beginning(session.token_ids, one.token_ids), one)
        for one in others
        if not one.unread
    ]
    most, best = max(common, key=lambda pair: pair[0], default=(0, session))
    if most >= FEWEST_SHARED:
        session.go_on_from(best)


def _order(session: Session) -> tuple[int, int, int]:
    """Prompts first, then the texts of every store by their places, so that they attend as one."""
    cache = session.cache
    if session.unread or not isinstance(cache, PlaceCache):
        return int(not session.unread), 0, 0
    return 1, id(cache.store), cache.place
