"""The layers of transformers' cache, as decoding needs them: with rows that can be taken back.

transformers' own layers grow by concatenation, a copy of all keys at every pass, and those with a
sliding window forget what a rejected draft would need again. Ours keep every position in one
buffer; the masks limit the window. Recurrent layers stay transformers' own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, DynamicLayer


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


def make_store(config: Any, layers: int, capacity: int) -> DynamicCache:
    """Transformers' cache of one sequence, with layers of ours where it only keeps rows.

    Args:
        config: The settings of the model's text part, which say what its layers remember.
        layers: Number of decoder layers, for a model that does not say.
        capacity: Most positions that fit.
    """
    try:
        store = DynamicCache(config=config)
    except Exception:  # configurations of models that do not follow its conventions
        store = DynamicCache()
    made = list(store.layers) or [DynamicLayer() for _ in range(layers)]
    store.layers = [_ours(layer, capacity) for layer in made]
    return store


def _ours(layer: Any, capacity: int) -> Any:
    windowed = getattr(cache_utils, "DynamicSlidingWindowLayer", DynamicLayer)
    if type(layer) in (DynamicLayer, windowed):
        return RowsLayer(capacity)
    mixed = getattr(cache_utils, "LinearAttentionAndSlidingWindowAttentionLayer", None)
    if mixed is not None and type(layer) is mixed:
        return cache_utils.LinearAttentionAndFullAttentionLayer(layer.number_of_states)
    return layer


def is_recurrent(layer: Any) -> bool:
    """Whether what a layer remembers changes in place, so that rows cannot be taken back."""
    return hasattr(layer, "recurrent_states")


def holds_rows_alone(layer: Any) -> bool:
    """Whether any of a layer's rows can be kept and the others dropped."""
    return isinstance(layer, RowsLayer) or type(layer).__name__ == "DummyLayer"


def cut(layer: Any, length: int) -> None:
    """Forgets the keys and values of one layer from position `length` on."""
    if isinstance(layer, RowsLayer):
        layer.show(length)
    elif isinstance(layer, DynamicLayer) and layer.is_initialized:
        surplus = layer.get_seq_length() - length
        crop = DynamicLayer.crop if is_recurrent(layer) else type(layer).crop
        if surplus > 0:
            crop(layer, -surplus)
