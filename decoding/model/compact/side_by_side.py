"""Caches of several sequences side by side, so that they attend together.

A pass over one new row of each of many sequences asks each layer for as many attentions, each of
which costs more in calls than in arithmetic. Where the caches are places of one store, they are one
batched product: rows see their own place, as far as it is filled.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.compact.cache import KVRows
from draftgym.decoding.model.interface import DecoderShape, NewRows, SequenceCache

TOGETHER = 16
"""Places of a store. They are read as far as the longest of them is filled: with more places,
short texts wait for longer ones; with fewer, there are more calls."""


class PlaceCache(KVRows):
    """A sequence's place in a store.

    Args:
        store: The store.
        place: Which of its places.
        capacity: Most positions that fit.
    """

    def __init__(self, store: Store, place: int, capacity: int) -> None:
        self.store, self.place = store, place
        self.capacity, self.length = capacity, 0
        self.positions = torch.arange(capacity, device=store.keys.device)
        self.look()

    def look(self) -> None:
        """Finds the place where the store has it now."""
        self.keys, self.values = self.store.keys[:, self.place], self.store.values[:, self.place]


class Store:
    """Memory of some sequences' keys and values, `[layers, places, G, rows, D]`.

    Args:
        shape: Sizes of the decoder.
        dtype: Storage dtype.
        device: Where it lies.
        places: For how many sequences.
    """

    def __init__(
        self, shape: DecoderShape, dtype: torch.dtype, device: torch.device, places: int = TOGETHER
    ) -> None:
        size = (shape.layers, places, shape.kv_heads, 0, shape.head_dim)
        self.keys = self.values = torch.empty(size, dtype=dtype, device=device)
        self.places, self._used = places, 0
        self._caches: dict[int, PlaceCache] = {}

    @property
    def is_full(self) -> bool:
        """Whether every place is taken."""
        return len(self._caches) == self.places

    @property
    def is_empty(self) -> bool:
        """Whether no place is taken."""
        return not self._caches

    @property
    def touched(self) -> int:
        """Places that take memory: on a processor those that were ever taken (`_zeros`)."""
        return self._used if self.keys.device.type == "cpu" else self.places

    @property
    def grows(self) -> bool:
        """Whether one text more takes more memory."""
        return len(self._caches) >= self.touched

    def open(self, capacity: int) -> PlaceCache:
        """An empty cache for so many positions in the first free place."""
        self._make_room(capacity)
        place = next(at for at in range(self.places) if at not in self._caches)
        self._caches[place] = PlaceCache(self, place, capacity)
        self._used = max(self._used, place + 1)
        return self._caches[place]

    def close(self, cache: PlaceCache) -> None:
        """Frees a sequence's place for the next one."""
        del self._caches[cache.place]

    def _make_room(self, rows: int) -> None:
        there = self.keys.shape[3]
        if rows <= there:
            return
        size = (*self.keys.shape[:3], rows, self.keys.shape[4])
        with torch.inference_mode(False):  # they are written to outside of it, too
            # Zeros, as hidden rows are multiplied, too.
            grown = [_zeros(size, self.keys) for _ in range(2)]
            for new, old in zip(grown, (self.keys, self.values), strict=True):
                for place, cache in self._caches.items():
                    new[:, place, :, : cache.length] = old[:, place, :, : cache.length]
            self.keys, self.values = grown
        for cache in self._caches.values():
            cache.look()


def _zeros(size: Sequence[int], like: Tensor) -> Tensor:
    """Zeros; on a processor those that the system gives, which take no memory until written."""
    if like.device.type != "cpu":
        return like.new_zeros(size)
    count = math.prod(size) * like.element_size()
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(like.dtype).view(size)


class Stores:
    """As many stores as are needed, each for texts of about the same length.

    Args:
        shape: Sizes of the decoder.
        dtype: Storage dtype.
        device: Where they lie.
    """

    def __init__(self, shape: DecoderShape, dtype: torch.dtype, device: torch.device) -> None:
        self._facts = (shape, dtype, device)
        self._by_size: dict[int, list[Store]] = defaultdict(list)

    def open(self, capacity: int) -> PlaceCache:
        """An empty cache in a store that has a place."""
        size = _size(capacity)
        store = self._store(size)
        if store is None:
            self._by_size[size].append(store := Store(*self._facts))
        return store.open(size)

    def close(self, cache: PlaceCache) -> None:
        """Frees a place; a store without a text goes."""
        cache.store.close(cache)
        if cache.store.is_empty:
            self._by_size[_size(cache.capacity)].remove(cache.store)

    @property
    def positions(self) -> int:
        """Positions that take memory."""
        return sum(size * one.touched for size, some in self._by_size.items() for one in some)

    def more_positions(self, capacity: int) -> int:
        """How many more would, with a cache more."""
        size = _size(capacity)
        store = self._store(size)
        if store is not None and not store.grows:
            return 0
        return size * (1 if self._facts[2].type == "cpu" else TOGETHER)

    def _store(self, size: int) -> Store | None:
        return next((one for one in self._by_size[size] if not one.is_full), None)


def _size(capacity: int) -> int:
    """Rows of the places where a text lies: a power of two, or three quarters of one."""
    power = 1 << (capacity - 1).bit_length()  # the next one
    return power if capacity > 3 * power // 4 else 3 * power // 4


class Abreast:
    """One new row of each of several sequences of one store.

    Keys and values are read where they lie, those of free places between them, too: what nobody
    asked for is cheaper than a copy of the rest.

    Args:
        caches: Their caches, by their places in ascending order.
    """

    def __init__(self, caches: Sequence[PlaceCache]) -> None:
        self.store, self.count = caches[0].store, len(caches)
        device, first = self.store.keys.device, caches[0].place
        self._read = slice(first, caches[-1].place + 1)
        width = self._read.stop - first
        self.places = torch.tensor([cache.place for cache in caches], device=device)
        self.ends = torch.tensor([cache.length for cache in caches], device=device)
        self._rows = self.places - first
        self._longest = 1 + max(cache.length for cache in caches)
        ends = self._among_all(self.ends, width)
        hidden = torch.arange(self._longest, device=device) > ends[:, None]
        mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)
        self._mask = mask[:, None, None].to(self.store.keys.dtype)  # [width, 1, 1, L]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Writes a layer's keys and values, and attends.

        Args:
            layer: Which layer.
            q: Queries `[m, H, D]`.
            k: Keys `[m, G, D]`.
            v: Values, same shape.
            scale: Of the scores; 1 / sqrt(D) where it is None.

        Returns:
            `[m, H * D]`.
        """
        keys, values = self.store.keys[layer], self.store.values[layer]
        keys[self.places, :, self.ends], values[self.places, :, self.ends] = k, v
        keys, values = (x[self._read, :, : self._longest] for x in (keys, values))
        queries = self._among_all(q, len(keys))
        queries = queries.unflatten(
            1, (k.shape[1], -1)
        )  # heads of a group are rows that see the same
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=self._mask, scale=scale
        )
        return out[self._rows].flatten(1)

    def _among_all(self, of_each: Tensor, width: int) -> Tensor:
        """Something of each sequence at its place, and zeros at those between."""
        if width == self.count:
            return of_each
        return of_each.new_zeros(width, *of_each.shape[1:]).index_copy_(0, self._rows, of_each)


def side_by_side(batch: Sequence[NewRows]) -> list[int | Abreast]:
    """What attends by itself, by its place in the batch, and neighbours that attend together."""
    pieces: list[int | Abreast] = []
    for store, some in groupby(range(len(batch)), lambda at: _store_of(batch[at])):
        neighbours = list(some)
        caches = [batch[at].cache for at in neighbours]
        pieces += [Abreast(caches)] if store is not None and _are_close(caches) else neighbours
    return pieces


def _are_close(caches: Sequence[SequenceCache]) -> bool:
    """Whether there are several in the order of their places, with few others between them."""
    places = [cache.place for cache in caches if isinstance(cache, PlaceCache)]
    ascend = all(one < other for one, other in pairwise(places))
    return ascend and len(places) > 1 and places[-1] - places[0] < 2 * len(places)


def _store_of(rows: NewRows) -> Store | None:
    """The store where a single row's sequence lies, if there is one."""
    alone = len(rows.tokens) == 1 and rows.visible is None
    return rows.cache.store if alone and isinstance(rows.cache, PlaceCache) else None
