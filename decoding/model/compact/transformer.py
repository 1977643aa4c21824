"""A compact rotary decoder: one ragged forward pass over several sequences.

Causal LMs of transformers whose layers are attention and a gated MLP run here
(`draftgym.decoding.model.compact.settings` names them). What tells these apart is data: which norms
a layer has (`LayerWeights`), scales, caps and windows (`DecoderShape`). Weights and rotary tables
are taken from the transformers model; what is ours is the pass itself: the rows of all sequences
go together through all that is done row by row (`draftgym.decoding.model.compact.rows`), and each
sequence attends to its own cache, so sequences with different numbers of new tokens share one call.

Notation: N = rows of the call over all sequences, n = rows of one sequence, d = hidden size,
H, G = query and key/value heads, D = their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.compact import cache
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.compiled.passes import STEP, CompiledPass
from draftgym.decoding.model.compact.layers import (
    RotaryTable,
    Sight,
    attend,
    full_sight,
    rms_norm,
    window_sight,
)
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.compact.rows import (
    CosSin,
    LayerWeights,
    Projections,
    RowWork,
    TorchRowWork,
)
from draftgym.decoding.model.compact.side_by_side import Abreast, side_by_side
from draftgym.decoding.model.interface import DecoderShape, NewRows, PassOutput


@dataclass(frozen=True)
class _Context:
    """What the layers of a pass share.

    Attributes:
        batch: The sequences.
        angles: Of the rows, one pair for each rotary table.
        sights: What the rows of each sequence see, by the window of the layer.
        pieces: What attends at once: a sequence, or single rows of several.
        sizes: Rows of each.
    """

    batch: Sequence[NewRows]
    angles: list[CosSin]
    sights: dict[int, list[Sight]]
    pieces: list[int | Abreast]
    sizes: list[int]


class Decoder:
    """Weights of a rotary decoder and its forward pass (a `TargetDecoder`).

    Args:
        shape: Its sizes.
        layers: Weights of its layers.
        embedding: `[vocab, d]`.
        final_norm: `[d]`.
        head: `[vocab, d]`.
        rotary: The rotary table, or those that `shape.ropes` counts.
        products: How rows are multiplied with its weights; default: by torch's own product.
        embedding_scale: The shape's, as the model rounds it; by default as it is.
    """

    draws_trees = True

    def __init__(
        self,
        shape: DecoderShape,
        layers: Sequence[LayerWeights],
        embedding: Tensor,
        final_norm: Tensor,
        head: Tensor,
        rotary: RotaryTable | Sequence[RotaryTable],
        products: Products | None = None,
        embedding_scale: float | None = None,
    ) -> None:
        self.shape = shape
        self.embedding_scale = embedding_scale or shape.embedding_scale
        self.layers = layers
        self.embedding = embedding
        self.final_norm = final_norm
        self.head = head
        self.rotaries = [rotary] if isinstance(rotary, RotaryTable) else list(rotary)
        self.compiled: CompiledPass | None = None
        self.form = ""  # in which few bits a compiled pass keeps the weights
        self.row_work: RowWork = TorchRowWork(shape, layers, head, products or Products())
        self.windows = shape.windows or (0,) * shape.layers
        self._narrow = sorted({window for window in self.windows if window})

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or sent to another process: a compiled pass stays where it was made."""
        return {**vars(self), "compiled": None}

    @property
    def rotary(self) -> RotaryTable:
        """The first rotary table; all reach equally far."""
        return self.rotaries[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights, cache and hidden states."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.device

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits of final hidden states; see `TargetDecoder.logits`."""
        if rows is not None or hidden.requires_grad or hidden.dtype != self.dtype:
            head = self.head if rows is None else self.head[rows]
            scores = F.linear(hidden, head.to(hidden.dtype))
        else:
            scores = self.row_work.score(hidden)
        return self._scaled(scores)

    def _scaled(self, scores: Tensor) -> Tensor:
        """What the model makes of its head's scores."""
        scale, cap = self.shape.logit_scale, self.shape.logit_cap
        if scale != 1.0:
            scores = scores * scale
        if cap is not None:
            scores = (scores / cap).tanh() * cap
        return scores.float()

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence."""
        shape = self.shape
        sizes = (shape.layers, shape.kv_heads, capacity, shape.head_dim)
        step = None if self.compiled is None else STEP
        return KVCache(*sizes, self.dtype, self.device, step)

    @torch.inference_mode()
    def forward(
        self, batch: Sequence[NewRows], tap_layers: Sequence[int] = (), with_logits: bool = True
    ) -> list[PassOutput]:
        """One pass, or several where there are many rows; see `TargetDecoder.forward`."""
        counts = [rows.tokens.shape[0] for rows in batch]
        if self.compiled is not None:
            self.compiled.make_room(batch)
        if any(map(_is_long, batch)):
            how = (tap_layers, with_logits)
            return [
                self._in_parts(rows, *how) if _is_long(rows) else self.forward([rows], *how)[0]
                for rows in batch
            ]
        if self.compiled is not None and self.compiled.takes(batch, with_logits):
            return [self._compiled(self.compiled, batch[0], tap_layers)]
        context = self._context(batch, counts)
        x = self._embed(torch.cat([rows.tokens for rows in batch]))
        projected, taps = self.row_work.project(x, context.angles), dict[int, Tensor]()
        for index in range(self.shape.layers):
            attended = self._attend(index, projected, context)
            x, following = self.row_work.go_on(index, x, attended, context.angles)
            if index in tap_layers:
                taps[index] = x
            if following is not None:
                projected = following
        tapped = x.new_empty(len(x), 0, self.shape.hidden)
        if tap_layers:
            tapped = torch.stack([taps[i] for i in tap_layers], dim=1)
        return self._outputs(batch, counts, x, tapped, with_logits)

    def _compiled(self, run: CompiledPass, rows: NewRows, tap_layers: Sequence[int]) -> PassOutput:
        scores, hidden, streams = run(self._embed(rows.tokens), rows, _positions(rows))
        kept = slice(rows.logits_from, None)
        taps = streams[:, list(tap_layers)]
        return PassOutput(self._scaled(scores[kept]), hidden[kept], taps)

    def _in_parts(self, rows: NewRows, tap_layers: Sequence[int], with_logits: bool) -> PassOutput:
        """The pass over one sequence's many rows as several; those before count as cached."""
        cached, n, outputs = rows.cache.length, len(rows.tokens), []
        taps = rows.room
        if taps is None:
            taps = self.embedding.new_empty(n, len(tap_layers), self.shape.hidden)
        try:
            for start in range(0, n, cache.ROWS_TOGETHER):
                part = slice(start, min(n, start + cache.ROWS_TOGETHER))
                positions = None if rows.positions is None else rows.positions[part]
                wanted = max(0, min(rows.logits_from, part.stop) - start)
                some = NewRows(rows.cache, rows.tokens[part], positions, logits_from=wanted)
                output = self.forward([some], tap_layers, with_logits)[0]
                taps[part] = output.taps
                outputs.append((output.logits, output.hidden))
                rows.cache.length = cached + part.stop
        finally:
            rows.cache.length = cached
        logits, hidden = map(torch.cat, zip(*outputs, strict=True))
        return PassOutput(logits, hidden, taps)

    @torch.inference_mode()
    def encode(self, rows: NewRows) -> None:
        """Writes keys and values of new rows, as `forward`, and computes nothing else.

        The last layer's attention and MLP, the last norm and the LM head serve the rows themselves;
        no later position reads them.
        """
        context = self._context([rows], [rows.tokens.shape[0]])
        x = self._embed(rows.tokens)
        projected = self.row_work.project(x, context.angles)
        last = self.shape.layers - 1
        for index in range(last):
            attended = self._attend(index, projected, context)
            x, following = self.row_work.go_on(index, x, attended, context.angles)
            assert following is not None, "a layer follows"
            projected = following
        rows.cache.write(last, *projected[1:])

    def _context(self, batch: Sequence[NewRows], counts: list[int]) -> _Context:
        positions = [_positions(rows) for rows in batch]
        together = positions[0] if len(positions) == 1 else torch.cat(positions)
        sights = {0: [self._sight(rows) for rows in batch]}
        if self._narrow:
            for rows, at in zip(batch, positions, strict=True):
                length = rows.cache.length
                rows.cache.positions[length : length + len(at)] = at
        for window in self._narrow:
            each = zip(sights[0], batch, positions, strict=True)
            sights[window] = [_narrowed(sight, window, rows, at) for sight, rows, at in each]
        plain = not self._narrow and self.shape.attention_cap is None
        pieces = side_by_side(batch) if plain else list[int | Abreast](range(len(batch)))
        sizes = [one.count if isinstance(one, Abreast) else counts[one] for one in pieces]
        angles = [table.at(together) for table in self.rotaries]
        return _Context(batch, angles, sights, pieces, sizes)

    def _sight(self, rows: NewRows) -> Sight:
        cached, n = rows.cache.length, rows.tokens.shape[0]
        return full_sight(n, cached, rows.visible, self.dtype, self.device)

    def _embed(self, tokens: Tensor) -> Tensor:
        x, scale = F.embedding(tokens, self.embedding), self.embedding_scale
        return x if scale == 1.0 else x * scale

    def _attend(self, index: int, projected: Projections, context: _Context) -> Tensor:
        """What a layer's attention gives, `[N, H * D]`; keys and values are written on the way."""
        shape, attended = self.shape, []
        scaled, sights = shape.attention_scale, context.sights[self.windows[index]]
        each = (part.split(context.sizes) for part in projected)
        for piece, q, k, v in zip(context.pieces, *each, strict=True):
            if isinstance(piece, Abreast):
                attended.append(piece.attend(index, q, k, v, scaled))
                continue
            keys, values = context.batch[piece].cache.write(index, k, v)
            attended.append(attend(q, keys, values, sights[piece], scaled, shape.attention_cap))
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _outputs(
        self,
        batch: Sequence[NewRows],
        counts: list[int],
        x: Tensor,
        taps: Tensor,
        with_logits: bool,
    ) -> list[PassOutput]:
        pieces = x.split(counts)
        wanted = [piece[rows.logits_from :] for piece, rows in zip(pieces, batch, strict=True)]
        hidden = rms_norm(torch.cat(wanted), self.final_norm, self.shape.eps)
        sizes = [piece.shape[0] for piece in wanted]
        if with_logits:
            logits = self.logits(hidden).split(sizes)
        else:
            logits = (hidden.new_empty(0, self.shape.vocab),) * len(sizes)
        return [
            PassOutput(*parts)
            for parts in zip(logits, hidden.split(sizes), taps.split(counts), strict=True)
        ]


def _positions(rows: NewRows) -> Tensor:
    if rows.positions is not None:
        return rows.positions
    start, device = rows.cache.length, rows.tokens.device
    return torch.arange(start, start + rows.tokens.shape[0], device=device)


def _is_long(rows: NewRows) -> bool:
    """Whether rows run in parts: many, of which each sees those before it."""
    return rows.visible is None and rows.tokens.shape[0] > cache.ROWS_TOGETHER


def _narrowed(sight: Sight, window: int, rows: NewRows, positions: Tensor) -> Sight:
    """What rows see in a layer with a window."""
    total = rows.cache.length + rows.tokens.shape[0]
    if total <= window:
        return sight
    # Keys before the newest ones of a tree lie in order, and all of the rows are behind them.
    newest = len(positions) if rows.visible is None else rows.visible.shape[1]
    start = max(0, total - newest + 1 - window)
    return window_sight(sight, start, window, positions, rows.cache.positions[:total])
