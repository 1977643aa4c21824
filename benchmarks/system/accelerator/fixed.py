"""A pass whose every shape is fixed, so that a CUDA graph can hold it.

Decoding asks a GPU for hundreds of small operations a pass, and starting them takes longer than
computing them. A CUDA graph starts all at once, but only the very same operations on the very same
memory. So here the new rows lie in buffers, attend to the whole cache under a mask that is made on
the device, and are written behind a length that lies there too. It is the decoder's own pass over a
cache that tells it otherwise: `FixedRows`.

Decoding does not use this; `make gpu` measures what it would gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.interface import NewRows, PassOutput


class FixedRows:
    """A cache seen by a pass of so many rows: all of its positions are there, always.

    Args:
        cache: The cache. What is not written yet becomes zeros: it is hidden, but counts as a
            number.
        rows: New rows of every pass.

    Attributes:
        start: Behind how many positions they are written, on the device.
        length: What the pass takes for its cached positions, so that it attends to the capacity.
    """

    def __init__(self, cache: KVCache, rows: int) -> None:
        self.cache = cache
        for store in (cache.keys, cache.values):
            store[:, :, cache.length :] = 0
        device = cache.keys.device
        self.start = torch.zeros((), dtype=torch.long, device=device)
        self.length = cache.capacity - rows
        self._own = torch.arange(rows, device=device)
        self._keys = torch.arange(cache.capacity, device=device)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new rows behind `start` and returns the whole cache of a layer."""
        at, cache = self.start + self._own, self.cache
        cache.keys[layer].index_copy_(1, at, keys.transpose(0, 1))
        cache.values[layer].index_copy_(1, at, values.transpose(0, 1))
        return cache.keys[layer], cache.values[layer]

    def sees(self, visible: Tensor) -> Tensor:
        """Who sees whom of all positions, bool `[n, capacity]`.

        Args:
            visible: Who sees whom among the new rows, bool `[n, n]`.
        """
        cached = (self._keys < self.start).expand(len(self._own), -1)
        return cached.index_copy(1, self.start + self._own, visible)


class FixedPass:
    """Passes of always as many new rows of one sequence.

    Args:
        decoder: The decoder.
        cache: The sequence's cache.
        rows: New rows of every pass.
        tap_layers: As `TargetDecoder.forward` takes them.

    Raises:
        DraftgymError: The decoder has layers with a window, whose masks depend on the length.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, rows: int, tap_layers: Sequence[int] = ()
    ) -> None:
        if any(getattr(decoder, "windows", ())):
            raise DraftgymError(
                "a pass of fixed shape over a sliding window", "name a target without windows"
            )
        self.decoder, self.rows, self.tap_layers = decoder, rows, tuple(tap_layers)
        self.view = FixedRows(cache, rows)
        device = decoder.device
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._offsets = torch.arange(rows, device=device)
        self._visible = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
        self._chain = (self._offsets.clone(), self._visible.clone())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: PassOutput | None = None

    @torch.inference_mode()
    def __call__(
        self, tokens: Tensor, depths: Tensor | None = None, visible: Tensor | None = None
    ) -> PassOutput:
        """One pass behind what the cache keeps now.

        Args:
            tokens: Token ids `[rows]`.
            depths: How far behind the first row's position each one is `[rows]`; None for a chain.
            visible: Who sees whom among them, bool `[rows, rows]`; None for a chain.

        Returns:
            What the ordinary pass gives. Once captured, the next pass writes over it.
        """
        cache = self.view.cache
        cache.require(self.rows)
        self.view.start.fill_(cache.length)
        self._tokens.copy_(tokens)
        self._offsets.copy_(self._chain[0] if depths is None else depths)
        self._visible.copy_(self._chain[1] if visible is None else visible)
        if self._graph is None or self._output is None:
            return self._run()
        self._graph.replay()
        return self._output

    @torch.inference_mode()
    def capture(self, warm_ups: int = 3) -> None:
        """Holds the pass in a CUDA graph from now on.

        Args:
            warm_ups: Passes before, so that nothing is allocated or chosen while it is recorded.

        Raises:
            DraftgymError: The decoder computes on no CUDA device.
        """
        if self.decoder.device.type != "cuda":
            raise DraftgymError(
                f"a CUDA graph of a pass on {self.decoder.device}", "use a target on --device cuda"
            )
        with torch.cuda.device(self.decoder.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(warm_ups):
                    self._run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._output = self._run()
            self._graph = graph

    def _run(self) -> PassOutput:
        view = self.view
        positions = view.start + self._offsets
        rows = NewRows(view, self._tokens, positions, view.sees(self._visible))
        return self.decoder.forward([rows], self.tap_layers)[0]
