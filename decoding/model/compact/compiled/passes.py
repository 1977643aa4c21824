"""The pass over one sequence as one graph, compiled by OpenVINO for the processor.

torch starts some twenty operations a layer, and few rows leave it little to do in each. OpenVINO
joins them, and reads each weight in the order in which it lies. A row's numbers do not depend on
how many rows there are (bit for bit, as far as was tried), so that texts agree across policies.

The graph reads the cache as far as there is room, hidden behind a mask where nothing is kept, and
gives the new keys and values to write. Passes over several sequences, over many rows and with
windows are torch's.

Notation: n = new rows, C = rows of the cache, d = hidden size, H, G = query and key/value
heads, D = their size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.compiled.graph import (
    ACTIVATIONS,
    CompiledGraph,
    Graph,
    has_forked,
    openvino_is_there,
    places_seen,
)
from draftgym.decoding.model.interface import NO_ROPE, NewRows

if TYPE_CHECKING:
    from draftgym.decoding.model.compact.transformer import Decoder

MOST_ROWS = 32
"""Rows of a compiled pass; more are multiplied as fast by torch, whose attention is faster."""

MOST_ROWS_IN_FEW_BITS = 4
"""The same with weights in few bits: OpenVINO makes numbers of them first for more."""

MOST_POSITIONS = 1280
"""Rows of a cache that is read; behind more, torch is as fast."""

STEP = 128
"""Caches grow by so many rows, as all rows are read, filled or not."""

SMALLEST, LARGEST = 1 << 23, 1 << 30
"""Numbers in a model's weights for which compiling is tried unasked: fewer are no work, and the
compiled weights are a copy."""


class CompiledPass:
    """Passes over few rows of one sequence.

    Args:
        decoder: A decoder in float32 on the processor.
        threads: CPU threads.

    Raises:
        DraftgymError: OpenVINO is not installed, or cannot run the decoder.
    """

    def __init__(self, decoder: Decoder, threads: int) -> None:
        _check(decoder)
        self.decoder = decoder
        self.most_rows = MOST_ROWS_IN_FEW_BITS if decoder.form else MOST_ROWS
        graph = _PassGraph(decoder)
        self._run = CompiledGraph(graph, graph.outputs(), threads)

    def make_room(self, batch: Sequence[NewRows]) -> None:
        """Makes room in the caches, so much that it is the same for any few rows."""
        for rows in batch:
            if isinstance(rows.cache, KVCache):
                rows.cache.reserve(rows.cache.length + max(MOST_ROWS, len(rows.tokens)))

    def takes(self, batch: Sequence[NewRows], with_logits: bool) -> bool:
        """Whether a pass runs compiled."""
        return (
            with_logits
            and len(batch) == 1
            and len(batch[0].tokens) <= self.most_rows
            and batch[0].cache.keys.shape[2] <= MOST_POSITIONS
            and not has_forked()
        )

    def __call__(self, x: Tensor, rows: NewRows, positions: Tensor) -> tuple[Tensor, ...]:
        """Runs the pass, and writes keys and values.

        Args:
            x: Embedded rows `[n, d]`.
            rows: What was embedded.
            positions: Of the rows, `[n]`.

        Returns:
            Scores of the head `[n, vocab]`, normed hidden states `[n, d]` and the residual stream
            behind every layer `[n, layers, d]`. The last holds until the next pass.
        """
        cache, angles = rows.cache, [table.at(positions) for table in self.decoder.rotaries]
        given = [x, *(part for pair in angles for part in pair)]
        given += [places_seen(cache, len(x), rows.visible), cache.keys, cache.values]
        scores, hidden, streams, keys, values = self._run(*given)
        cache.write_all(keys, values)
        return scores.clone(), hidden.clone(), streams.unflatten(1, (-1, x.shape[1]))


def compiled_pass(decoder: Decoder, threads: int) -> tuple[CompiledPass | None, str]:
    """A compiled pass where it is faster than torch's, and why or why not."""
    numbers = sum(one.gate_up.numel() + one.down.numel() for one in decoder.layers)
    if not SMALLEST <= numbers + decoder.head.numel() <= LARGEST:
        return None, ""
    try:
        compiled = CompiledPass(decoder, threads)
    except DraftgymError as error:
        return None, f"; not compiled ({error.problem})"
    gain = _gain(decoder, compiled)
    told = f"{gain:.2f} times as fast"
    return (compiled, f"; compiled ({told})") if gain > 1.1 else (None, f"; not compiled ({told})")


@torch.inference_mode()
def _gain(decoder: Decoder, compiled: CompiledPass, repeats: int = 6) -> float:
    """How many times faster than torch's the compiled pass is for one row and nine together.

    Or as many as it takes.
    """
    tokens = torch.arange(min(9, compiled.most_rows)) % len(decoder.embedding)
    decoder.compiled = compiled  # it wants a cache without what is no number
    cache = decoder.new_cache(128)
    cache.length = 96
    best = {(way, count): float("inf") for way in (compiled, None) for count in (1, len(tokens))}
    for _ in range(repeats):  # interleaved, so that drift hits both; the first one warms up
        for way, count in best:
            decoder.compiled = way
            start = time.perf_counter()
            decoder.forward([NewRows(cache, tokens[:count])])
            best[way, count] = min(best[way, count], time.perf_counter() - start)
    decoder.compiled = None
    compiled_seconds, torchs = (
        sum(seconds for (way, _), seconds in best.items() if way is one) for one in (compiled, None)
    )
    return torchs / compiled_seconds


def _check(decoder: Decoder) -> None:
    """Raises `DraftgymError` unless the decoder can be compiled."""
    if not openvino_is_there():
        raise DraftgymError("OpenVINO is not installed", "pip install 'draftgym[openvino]'")
    shape = decoder.shape
    lacks = {
        "float32 on the processor alone": decoder.dtype != torch.float32
        or decoder.device.type != "cpu",
        f"no activation {shape.activation!r}": shape.activation not in ACTIVATIONS,
        "no mixture of experts": any(layer.router is not None for layer in decoder.layers),
        "no sliding windows": any(shape.windows),
        "no heads that are turned in part": any(
            table.cos.shape[-1] != shape.head_dim for table in decoder.rotaries
        ),
    }
    for what, applies in lacks.items():
        if applies:
            raise DraftgymError(f"the compiled pass knows {what}", "use --backend compact")


class _PassGraph(Graph):
    """A decoder's whole pass."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder.shape, decoder.form)
        self.decoder = decoder

    def outputs(self) -> list[Any]:
        """The whole pass; inputs and outputs as `CompiledPass` gives and takes them."""
        op, shape, decoder = self.op, self.shape, self.decoder
        x = self.input(-1, shape.hidden)
        angles = [self.angles() for _ in decoder.rotaries]
        mask, stored = self.places()
        ropes = shape.ropes or (0,) * shape.layers
        streams, keys, values = [], [], []
        for index in range(shape.layers):
            layer, rope = decoder.layers[index], ropes[index]
            turned = None if rope == NO_ROPE else angles[rope]
            attended, k, v = self.attention(layer, x, turned, mask, stored[index])
            x = self.behind_attention(layer, x, attended)
            streams.append(x)
            keys.append(k)
            values.append(v)
        hidden = self.norm(x, decoder.final_norm)
        made = [self.head(hidden, decoder.head), hidden, op.concat(streams, 1)]
        return [*made, op.concat(keys, 0), op.concat(values, 0)]
