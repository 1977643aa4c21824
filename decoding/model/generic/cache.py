"""What a generic target remembers of one sequence: transformers' cache, with rows in place.

transformers' own layers grow by concatenation, a copy of all keys at every pass, and those with a
sliding window forget what a rejected draft would need again. Ours keep every position in one
buffer; the masks limit the window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from draftgym.decoding.errors import DraftgymError


class RowsLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in a buffer of fixed size.

    Args:
        capacity: Most positions that fit.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the buffers when the first keys and values show their shapes."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._buffers = [
            states.new_empty(*states.shape[:-2], self.capacity, states.shape[-1])
            for states in (key_states, value_states)
        ]
        self.is_initialized = True
        self.show(0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes new rows `[1, G, n, D]` behind those that are there; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        self.show(start + key_states.shape[-2])
        self.keys[..., start:, :] = key_states
        self.values[..., start:, :] = value_states
        return self.keys, self.values

    def show(self, length: int) -> None:
        """Lets keys and values be the first `length` rows."""
        if self.is_initialized:
            self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def gather(self, start: int, rows: Tensor) -> None:
        """Moves some rows, counted from `start` on, to `start`, and forgets the others."""
        if self.is_initialized:
            for buffer in self._buffers:
                buffer[..., start : start + len(rows), :] = buffer[..., start + rows, :]
            self.show(start + len(rows))

    def take(self, other: RowsLayer, length: int) -> None:
        """Copies the first `length` rows of the same layer of another sequence."""
        if not other.is_initialized:
            return
        if not self.is_initialized:
            self.lazy_initialization(other.keys, other.values)
        self.show(length)
        self.keys.copy_(other.keys[..., :length, :])
        self.values.copy_(other.values[..., :length, :])


class GenericCache:
    """The cache of one sequence (a `SequenceCache`).

    Args:
        layers: Number of decoder layers.
        capacity: Most positions that fit.

    Attributes:
        offset: How much further its next token stands than its row says; see `image_positions`.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.offset = 0
        self.store = DynamicCache()
        self.rows = [RowsLayer(capacity) for _ in range(layers)]
        self.store.layers = list(self.rows)

    def require(self, rows: int) -> None:
        """Raises `DraftgymError` unless `rows` more positions fit."""
        if self.length + rows > self.capacity:
            raise DraftgymError(
                f"{self.length + rows} positions do not fit the cache of {self.capacity}",
                "shorten the prompt or lower --max-new-tokens",
            )

    def begin(self, tokens: Tensor) -> Tensor:
        """Makes ready for a pass over new tokens; returns what must run, the new ones last."""
        for layer in self.rows:
            layer.show(self.length)  # a pass that was never kept is forgotten
        return tokens

    @torch.inference_mode()
    def keep(self, rows: Tensor | int) -> None:
        """Commits rows of the last pass; see `SequenceCache.keep`."""
        if isinstance(rows, int):
            self.length += rows
            return
        for layer in self.rows:
            layer.gather(self.length, rows)
        self.length += len(rows)

    def roll_back(self, length: int) -> None:
        """Forgets everything from position `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot roll back from {self.length} to {length}")
        self.length = length

    @torch.inference_mode()
    def start_like(self, other: GenericCache, length: int) -> None:
        """Takes over the first `length` positions of another cache."""
        for mine, its in zip(self.rows, other.rows, strict=True):
            mine.take(its, length)
        self.length, self.offset = length, other.offset
