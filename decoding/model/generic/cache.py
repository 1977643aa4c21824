"""What a generic target remembers of one sequence."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.generic.layers import (
    RowsLayer,
    cut,
    holds_rows_alone,
    is_recurrent,
    make_store,
)
from draftgym.decoding.model.interface import ModelInputs


def new_cache(config: Any, layers: int, capacity: int) -> GenericCache:
    """An empty cache, of the kind that a model's layers need.

    Args:
        config: The settings of its text part.
        layers: Number of its decoder layers.
        capacity: Most positions that fit.
    """
    store = make_store(config, layers, capacity)
    kind = ReplayedCache if any(map(is_recurrent, store.layers)) else GenericCache
    return kind(config, layers, capacity, store)


@dataclass(frozen=True)
class Shown:
    """The images of a prompt.

    Attributes:
        inputs: What goes into the model with them.
        tokens: Tokens of the prompt, which run with these.
    """

    inputs: ModelInputs
    tokens: int


class GenericCache:
    """The cache of one sequence (a `SequenceCache`) whose layers keep rows.

    Args:
        config: The settings of the model's text part.
        layers: Number of decoder layers.
        capacity: Most positions that fit.
        store: transformers' cache, empty.

    Attributes:
        filled: Positions that the layers hold, those of a pass included that may be undone.
        shown: The images of the prompt, which go in with it whenever it runs.
        offset: How much further a token behind them stands than its row says; `image_positions`.
    """

    def __init__(self, config: Any, layers: int, capacity: int, store: Any) -> None:
        self.config, self.layers = config, layers
        self.capacity = capacity
        self.store = store
        self.length = self.filled = self.offset = 0
        self.shown: Shown | None = None

    @property
    def keeps_any_rows(self) -> bool:
        """Whether the rows to keep may be any, not only the first ones."""
        return all(map(holds_rows_alone, self.store.layers))

    def require(self, rows: int) -> None:
        """Raises `DraftgymError` unless `rows` more positions fit."""
        if self.length + rows > self.capacity:
            raise DraftgymError(
                f"{self.length + rows} positions do not fit the cache of {self.capacity}",
                "shorten the prompt or lower --max-new-tokens",
            )

    def owed(self) -> Tensor | None:
        """Tokens that must run before the next pass, and be `settle`d; None for none."""
        return None

    def settle(self) -> None:
        """Says that what was owed has run."""

    def begin(self, tokens: Tensor) -> Tensor:
        """Makes ready for a pass over new tokens; returns what must run, the new ones last."""
        for layer in self.store.layers:  # a pass that was never kept is forgotten
            cut(layer, self.length)
        self.filled = self.length
        return tokens

    @torch.inference_mode()
    def keep(self, rows: Tensor | int) -> None:
        """Commits rows of the last pass; see `SequenceCache.keep`."""
        if isinstance(rows, int):
            self.length += rows
            return
        there = {rows.device: rows}  # layers may lie on several devices
        for layer in self.store.layers:
            if isinstance(layer, RowsLayer) and layer.is_initialized:
                if layer.device not in there:
                    there[layer.device] = rows.to(layer.device)
                layer.gather(self.length, there[layer.device])
        self.length += len(rows)

    def roll_back(self, length: int) -> None:
        """Forgets everything from position `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot roll back from {self.length} to {length}")
        self.length = length

    @torch.inference_mode()
    def start_like(self, other: GenericCache, length: int) -> None:
        """Takes over the first `length` positions of another cache."""
        self._take_layers(other, length)
        self.length = length
        self.shown, self.offset = other.shown, other.offset

    def _take_layers(self, other: GenericCache, length: int) -> None:
        for index, its in enumerate(other.store.layers):
            mine = self.store.layers[index]
            if isinstance(mine, RowsLayer):
                mine.take(its, length)
            else:
                self.store.layers[index] = copy.deepcopy(its)
                cut(self.store.layers[index], length)


REPLAYED_WITH_OTHERS = 32
"""Most accepted tokens that run again in front of new ones; more get a pass of their own."""


class ReplayedCache(GenericCache):
    """The cache of a sequence where some layers are recurrent, so that chains alone are verified.

    Such a layer cannot forget rows. So its state is copied before each pass; where only a part of
    the pass is kept, the copy comes back, and the kept tokens run once more, in front of the next
    pass's own. Rolling back behind the copy means to run the text again from its start.

    Attributes:
        reached: Positions that the recurrent states cover, once what was not kept is undone.
    """

    def __init__(self, config: Any, layers: int, capacity: int, store: Any) -> None:
        super().__init__(config, layers, capacity, store)
        self.reached = 0
        self._tokens = torch.empty(0, dtype=torch.long)  # [length]
        self._passed = self._tokens  # of the last pass, the new ones
        self._copies: list[Any] | None = None

    @property
    def keeps_any_rows(self) -> bool:
        """Never: a state has seen its rows in order."""
        return False

    def owed(self) -> Tensor | None:
        """The tokens that must run again, where these are many."""
        if self.length - self.reached <= REPLAYED_WITH_OTHERS:
            return None
        self._ready()
        return self._tokens[self.reached :]

    def settle(self) -> None:
        """Says that what was owed has run."""
        self.reached, self._copies = self.filled, None

    def begin(self, tokens: Tensor) -> Tensor:
        """Puts the copied states back where needed; see `GenericCache.begin`."""
        again = self._tokens[self.reached :]
        self._passed = tokens
        self._ready()
        return torch.cat([again.to(tokens.device), tokens])

    @torch.inference_mode()
    def keep(self, rows: Tensor | int) -> None:
        """Commits the first rows of the last pass.

        Raises:
            ValueError: Other rows are asked for.
        """
        if not isinstance(rows, int):
            if rows.tolist() != list(range(len(rows))):
                raise ValueError("a recurrent target keeps the first rows of a pass")
            rows = len(rows)
        kept = self._passed[:rows]
        self._passed = self._passed[:0]
        self._tokens = torch.cat([self._tokens.to(kept.device), kept])
        self.length += rows
        if self.filled == self.length:
            self.settle()

    def roll_back(self, length: int) -> None:
        """Forgets everything from position `length` on."""
        super().roll_back(length)
        self._tokens, self._passed = self._tokens[:length], self._passed[:0]
        if length < self.reached:
            self._start_again()

    @torch.inference_mode()
    def start_like(self, other: GenericCache, length: int) -> None:
        """Takes over the first `length` positions of another cache."""
        assert isinstance(other, ReplayedCache)
        self._tokens, self._passed = other._tokens[:length].clone(), other._passed[:0]
        self.length = length
        self.shown, self.offset = other.shown, other.offset
        self._start_again()
        if other.reached <= length:
            self._take_layers(other, other.reached)
            copies = other._copies
            self._copies = None if copies is None else copy.deepcopy(copies)
            self.reached, self.filled = other.reached, other.filled

    def _start_again(self) -> None:
        self.store = make_store(self.config, self.layers, self.capacity)
        self.reached = self.filled = 0
        self._copies = None

    @torch.inference_mode()
    def _ready(self) -> None:
        """Undoes what was not kept, and copies the states."""
        recurrent = [layer for layer in self.store.layers if is_recurrent(layer)]
        if self._copies is not None:
            for layer, states in zip(recurrent, self._copies, strict=True):
                vars(layer).update(states)
        for layer in self.store.layers:
            cut(layer, self.reached)
        self._copies = [_states(layer) for layer in recurrent]
        self.filled = self.reached


def _states(layer: Any) -> dict[str, Any]:
    """A copy of what a recurrent layer remembers, its keys and values left out."""
    return {
        name: {i: x.clone() if isinstance(x, Tensor) else x for i, x in value.items()}
        for name, value in vars(layer).items()
        if isinstance(value, dict)
    }
