"""The memory of a batch: a bounded pool of caches, where finished texts stay for a while.

A text takes room for its prompt and all it may write when it is let in, so that what has begun
always ends. What is left of the pool holds finished texts, the least recently used of which make
room first: the next turn of a talk, or another question behind the same system prompt, takes over
keys and values, taps and drafters' states instead of reading the beginning again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.compact.cache import KVRows
from draftgym.decoding.model.compact.side_by_side import PlaceCache, Stores
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.interface import SequenceCache
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session, common_beginning

FEWEST_SHARED = 4
"""Tokens of a common beginning that are worth a copy."""

MOST_KEPT = 256
"""Finished texts that are kept: each of them is compared with every new one."""


class CachePool:
    """Caches of the texts of a target, in so many bytes.

    Args:
        target: The target.
        drafters: Whose states the texts have.
        most_bytes: Memory for keys, values, taps and drafters' states of all texts.
        reuse: Whether texts take over what others have read.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[str, Drafter],
        most_bytes: int,
        reuse: bool = True,
    ) -> None:
        decoder = target.decoder
        self.most_bytes, self.reuse, self._decoder = most_bytes, reuse, decoder
        self._widest = max((one.max_tree_nodes for one in drafters.values()), default=0)
        shape, item = decoder.shape, decoder.dtype.itemsize
        self._row_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * item
        taps = {layer for one in drafters.values() for layer in one.tap_layers}
        states = sum(map(_state_bytes, drafters.values()))
        self._position_bytes = len(taps) * shape.hidden * item + states
        self._stores: Stores | None = None
        if isinstance(decoder, Decoder):
            self._stores = Stores(shape, decoder.dtype, decoder.device)
        self._open: set[Session] = set()
        self._kept: OrderedDict[Session, None] = OrderedDict()

    @property
    def bytes_in_use(self) -> int:
        """Memory of running and of kept texts."""
        sessions = [*self._open, *self._kept]
        positions = sum(session.capacity for session in sessions)
        rows = positions + len(sessions) * self._widest
        if self._stores is not None:
            rows = self._stores.positions
        return rows * self._row_bytes + positions * self._position_bytes

    @property
    def kept(self) -> int:
        """Finished texts that are kept."""
        return len(self._kept)

    def fits(self, capacity: int) -> bool:
        """Whether a text of so many positions fits when it is alone."""
        return self._needs(capacity) <= self.most_bytes

    def room_for(self, capacity: int) -> bool:
        """Makes room for a text of so many positions, if that can be; kept texts go for it."""
        while self.bytes_in_use + self._needs(capacity) > self.most_bytes:
            if not self._kept:
                return False
            self._let_go(next(iter(self._kept)))
        return True

    def new_cache(self, capacity: int) -> SequenceCache:
        """A cache for a text of so many positions, and for the widest tree behind them."""
        rows = capacity + self._widest
        if self._stores is None:
            cache: SequenceCache = self._decoder.new_cache(rows)
            return cache
        return self._stores.open(rows)

    def enter(self, session: Session) -> None:
        """Counts a text, whose cache is of the pool."""
        self._open.add(session)

    def leave(self, session: Session, keep: bool = True) -> None:
        """A text is over; it is kept for others, unless that is not wanted."""
        self._open.discard(session)
        session.retire()
        if not (keep and self.reuse):
            self._close(session)
            return
        for kept in [one for one in self._kept if _covers(session, one)]:
            self._let_go(kept)
        self._kept[session] = None
        if len(self._kept) > MOST_KEPT:
            self._let_go(next(iter(self._kept)))

    def begin_like_another(self, session: Session) -> int:
        """Lets a text that has not begun take over the longest beginning that is known.

        Returns:
            Positions that were taken over.
        """
        if not self.reuse:
            return 0
        known, best = longest_beginning(session, [*self._open - {session}, *self._kept])
        if best is None or known < FEWEST_SHARED:
            return 0
        if best in self._kept:
            self._kept.move_to_end(best)
        return session.go_on_from(best)

    def _needs(self, capacity: int) -> int:
        rows = capacity + self._widest
        if self._stores is not None:
            rows = self._stores.more_positions(rows)
        return rows * self._row_bytes + capacity * self._position_bytes

    def _let_go(self, session: Session) -> None:
        del self._kept[session]
        self._close(session)

    def _close(self, session: Session) -> None:
        if self._stores is not None and isinstance(session.cache, PlaceCache):
            self._stores.close(session.cache)


def longest_beginning(session: Session, others: Iterable[Session]) -> tuple[int, Session | None]:
    """Who has read most of what a text begins with, and how many tokens of it."""
    best: tuple[int, Session | None] = 0, None
    for other in others:
        read = other.token_ids[: other.cache.length]
        shared = common_beginning(session.token_ids, read)
        if shared > best[0]:
            best = shared, other
    return best


def _covers(session: Session, other: Session) -> bool:
    """Whether a text begins with all that another one has read."""
    count = other.cache.length
    return session.cache.length >= count and other.token_ids[:count] == session.token_ids[:count]


def _state_bytes(drafter: Drafter) -> int:
    """What a position takes in a drafter's state; indices of texts are not counted."""
    state = drafter.new_state(1)
    if not isinstance(state, KVRows):
        return 0
    layers, heads, _, size = state.keys.shape
    return 2 * layers * heads * size * state.keys.element_size()
