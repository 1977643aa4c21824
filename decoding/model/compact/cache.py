"""Key/value caches of one sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.errors import DraftgymError

ROWS_TOGETHER = 512
"""Rows of a long text that run at once: what a pass holds grows with their number."""


class KVRows:
    """Keys and values of one sequence in every layer, wherever they lie.

    Rolling back is moving `length`; compacting an accepted tree path is a gather. Rows past
    `length` are scratch: a pass writes the new tokens there, and `keep` decides which stay.

    Attributes:
        keys: `[layers, kv_heads, rows, head_dim]`.
        values: Same shape.
        capacity: Most positions that fit.
        length: Positions that are kept.
        positions: Position of each row `[capacity]`: its place, but for rows of a tree, where those
            who share one lie side by side (only decoders with windows write and read these).
    """

    keys: Tensor
    values: Tensor
    capacity: int
    length: int
    positions: Tensor

    def reserve(self, length: int) -> None:
        """Makes room for so many positions in all."""

    def require(self, rows: int) -> None:
        """Raises `DraftgymError` unless `rows` more positions fit."""
        if self.length + rows > self.capacity:
            raise DraftgymError(
                f"{self.length + rows} positions do not fit the cache of {self.capacity}",
                "shorten the prompt or lower --max-new-tokens",
            )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new rows behind `length` and returns all keys and values up to them.

        Args:
            layer: Which layer.
            keys: New keys `[n, kv_heads, head_dim]`.
            values: New values, same shape.

        Returns:
            Views `[kv_heads, length + n, head_dim]` of keys and values.
        """
        stop = self.length + keys.shape[0]
        self.reserve(stop)
        self.keys[layer, :, self.length : stop] = keys.transpose(0, 1)
        self.values[layer, :, self.length : stop] = values.transpose(0, 1)
        return self.keys[layer, :, :stop], self.values[layer, :, :stop]

    def write_all(self, keys: Tensor, values: Tensor) -> None:
        """Writes new rows of all layers behind `length`, for which there is room.

        Args:
            keys: New keys `[layers, kv_heads, n, head_dim]`.
            values: New values, same shape.
        """
        stop = self.length + keys.shape[2]
        self.keys[:, :, self.length : stop] = keys
        self.values[:, :, self.length : stop] = values

    def keep(self, rows: Tensor | int) -> None:
        """Commits scratch rows.

        Args:
            rows: How many leading scratch rows to keep, or which ones (`[m]`, ascending offsets
                behind `length`): these are gathered to be contiguous.
        """
        if isinstance(rows, int):
            self.length += rows
            return
        stop = self.length + rows.shape[0]
        source = rows + self.length
        self.keys[:, :, self.length : stop] = self.keys[:, :, source]
        self.values[:, :, self.length : stop] = self.values[:, :, source]
        self.positions[self.length : stop] = self.positions[source]
        self.length = stop

    def roll_back(self, length: int) -> None:
        """Forgets everything from position `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot roll back from {self.length} to {length}")
        self.length = length

    def start_like(self, other: KVCache, length: int) -> None:
        """Takes over the first `length` positions of another cache."""
        self.reserve(length)
        self.keys[:, :, :length] = other.keys[:, :, :length]
        self.values[:, :, :length] = other.values[:, :, :length]
        self.length = length


class KVCache(KVRows):
    """Keys and values in memory of their own.

    Args:
        layers: Number of decoder layers.
        kv_heads: Key/value heads per layer.
        capacity: Most positions that fit.
        head_dim: Size of a head.
        dtype: Storage dtype.
        device: Where it lies.
        step: Room is made in such steps (`reserve`), what is not written being zeros; None makes
            all of it at once.

    Attributes:
        step: As given.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        step: int | None = None,
    ) -> None:
        self.capacity, self.step = capacity, step
        size = (layers, kv_heads, 0 if step else capacity, head_dim)
        self.keys = torch.empty(size, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.positions = torch.arange(capacity, device=device)
        self.length = 0

    def reserve(self, length: int) -> None:
        """Makes room for so many positions in all, a whole number of steps."""
        there = self.keys.shape[2]
        if self.step is None or length <= there:
            return
        rows = min(self.capacity, -(-length // self.step) * self.step)
        more = (0, 0, 0, rows - there)
        with torch.inference_mode(False):  # they are written to outside of it, too
            self.keys, self.values = F.pad(self.keys, more), F.pad(self.values, more)
