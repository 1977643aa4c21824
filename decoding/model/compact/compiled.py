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

import importlib.util
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.layers import all_before
from draftgym.decoding.model.compact.rows import LayerWeights
from draftgym.decoding.model.interface import NO_ROPE, NewRows

if TYPE_CHECKING:
    from draftgym.decoding.model.compact.transformer import Decoder

ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "silu": ("swish", {}),
    "relu": ("relu", {}),
    "gelu": ("gelu", {"approximation_mode": "erf"}),
    "gelu_pytorch_tanh": ("gelu", {"approximation_mode": "tanh"}),
}
"""What the activations of configurations are called in OpenVINO."""

MOST_ROWS = 32
"""Rows of a compiled pass; more are multiplied as fast by torch, whose attention is faster."""

MOST_POSITIONS = 1280
"""Rows of a cache that is read; behind more, torch is as fast."""

STEP = 128
"""Caches grow by so many rows, as all rows are read, filled or not."""

SMALLEST, LARGEST = 1 << 23, 1 << 30
"""Numbers in a model's weights for which compiling is tried unasked: fewer are no work, and the
compiled weights are a copy."""

_forked = False


def _forget() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # OpenVINO's threads stay with the parent


def openvino_is_there() -> bool:
    """Whether passes can be compiled here."""
    return not _forked and importlib.util.find_spec("openvino") is not None


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
        import openvino

        self.decoder = decoder
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        try:
            compiled = openvino.Core().compile_model(_Graph(decoder).model(), "CPU", options)
        except RuntimeError as error:
            raise DraftgymError(
                f"OpenVINO cannot compile the pass: {str(error).splitlines()[0]}",
                "use --backend compact",
            ) from error
        self._request = compiled.create_infer_request()

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
            and len(batch[0].tokens) <= MOST_ROWS
            and isinstance(batch[0].cache, KVCache)
            and batch[0].cache.keys.shape[2] <= MOST_POSITIONS
            and not _forked
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
        given = [x, *(part for pair in angles for part in pair), _mask(rows)]
        given += [cache.keys, cache.values]
        out = self._request.infer(
            [one.numpy() for one in given], share_inputs=True, share_outputs=True
        )
        scores, hidden, streams, keys, values = map(torch.from_numpy, out.values())
        stop = cache.length + len(x)
        cache.keys[:, :, cache.length : stop] = keys
        cache.values[:, :, cache.length : stop] = values
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
def _gain(decoder: Decoder, compiled: CompiledPass, repeats: int = 4) -> float:
    """How many times faster than torch's the compiled pass is for one row and nine together."""
    tokens = torch.arange(9) % len(decoder.embedding)
    decoder.compiled = compiled  # it wants a cache without what is no number
    cache = decoder.new_cache(128)
    cache.length = 96
    seconds = {compiled: float("inf"), None: float("inf")}
    for _ in range(repeats):  # interleaved, so that drift hits both; the first one warms up
        for way in seconds:
            decoder.compiled = way
            start = time.perf_counter()
            for count in (1, 9):
                decoder.forward([NewRows(cache, tokens[:count])])
            seconds[way] = min(seconds[way], time.perf_counter() - start)
    decoder.compiled = None
    return seconds[None] / seconds[compiled]


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


def _mask(rows: NewRows) -> Tensor:
    """Additive `[1, 1, n, C + n]`: which places of the cache and which new rows each row sees."""
    cached, stored, n = rows.cache.length, rows.cache.keys.shape[2], len(rows.tokens)
    visible = all_before(n, torch.device("cpu")) if rows.visible is None else rows.visible
    mask = torch.full((n, stored + n), -torch.inf)
    mask[:, :cached] = 0
    newest = visible.shape[1] - n  # rows of earlier passes that some see and some do not
    mask[:, stored:].masked_fill_(visible[:, newest:], 0)
    if newest:
        mask[:, cached - newest : cached].masked_fill_(~visible[:, :newest], -torch.inf)
    return mask[None, None]


class _Graph:
    """Writes a decoder's pass in OpenVINO's operations."""

    def __init__(self, decoder: Decoder) -> None:
        from openvino import opset15

        self.op, self.decoder, self.shape = opset15, decoder, decoder.shape
        self.inputs: list[Any] = []

    def model(self) -> Any:
        """The whole pass; inputs and outputs as `CompiledPass` gives and takes them."""
        from openvino import Model

        op, shape, decoder = self.op, self.shape, self.decoder
        x = self._input(-1, shape.hidden)
        size = (-1, 1, shape.head_dim)
        angles = [(self._input(*size), self._input(*size)) for _ in decoder.rotaries]
        mask = self._input(1, 1, -1, -1)
        stores = [self._input(shape.layers, shape.kv_heads, -1, shape.head_dim) for _ in range(2)]
        cached = [op.split(store, op.constant(0), shape.layers).outputs() for store in stores]
        ropes = shape.ropes or (0,) * shape.layers
        streams, keys, values = [], [], []
        for index in range(shape.layers):
            layer, rope = decoder.layers[index], ropes[index]
            q, k, v = self._projections(layer, x, None if rope == NO_ROPE else angles[rope])
            keys.append(self._by_group(k))
            values.append(self._by_group(v))
            before = (store[index] for store in cached)
            k, v = (op.concat(both, 2) for both in zip(before, (keys[-1], values[-1]), strict=True))
            x = self._behind_attention(layer, x, self._attend(q, k, v, mask))
            streams.append(x)
        hidden = self._norm(x, decoder.final_norm)
        made = [self._linear(hidden, decoder.head, None), hidden, op.concat(streams, 1)]
        made += [op.concat(keys, 0), op.concat(values, 0)]
        return Model([op.result(one) for one in made], self.inputs, "pass")

    def _input(self, *size: int) -> Any:
        self.inputs.append(self.op.parameter(list(size), np.float32))
        return self.inputs[-1]

    def _projections(self, layer: LayerWeights, x: Any, angles: Any) -> tuple[Any, Any, Any]:
        """Queries, keys and values `[n, heads, D]`, the first two normed and turned."""
        op, shape = self.op, self.shape
        if layer.input_norm is not None:
            x = self._norm(x, layer.input_norm)
        counts = [shape.heads, shape.kv_heads, shape.kv_heads]
        qkv = self._heads(self._linear(x, layer.qkv, layer.qkv_bias), sum(counts))
        q, k, v = op.variadic_split(qkv, op.constant(1), op.constant(counts)).outputs()
        if layer.q_norm is not None and layer.k_norm is not None:
            q = self._norm_heads(q, layer.q_norm, shape.heads)
            k = self._norm_heads(k, layer.k_norm, shape.kv_heads)
        if angles is None:
            return q, k, v
        return self._turn(q, *angles), self._turn(k, *angles), v

    def _by_group(self, x: Any) -> Any:
        """`[n, G, D]` to `[1, G, n, D]`."""
        return self.op.unsqueeze(
            self.op.transpose(x, self.op.constant([1, 0, 2])), self.op.constant(0)
        )

    def _attend(self, q: Any, keys: Any, values: Any, mask: Any) -> Any:
        """Grouped-query attention, `[n, H * D]`."""
        op, shape = self.op, self.shape
        share = shape.heads // shape.kv_heads
        shared = self._reshape(q, [0, shape.kv_heads, share, shape.head_dim])
        grouped = op.transpose(shared, op.constant([1, 2, 0, 3]))  # [G, share, n, D]
        by_group = [op.transpose(one, op.constant([1, 0, 2, 3])) for one in (keys, values)]
        scale = shape.attention_scale or shape.head_dim**-0.5
        scores = op.matmul(self._times(grouped, scale), by_group[0], False, True)
        if shape.attention_cap is not None:
            scores = self._times(scores, 1 / shape.attention_cap)
            scores = self._times(op.tanh(scores), shape.attention_cap)
        weights = op.softmax(op.add(scores, mask), -1)
        out = op.transpose(op.matmul(weights, by_group[1], False, False), op.constant([2, 0, 1, 3]))
        return op.reshape(out, op.constant([-1, shape.heads * shape.head_dim]), special_zero=False)

    def _behind_attention(self, layer: LayerWeights, x: Any, attended: Any) -> Any:
        """Output projection and MLP, each joined to the residual stream."""
        op = self.op
        mixed = self._linear(attended, layer.out, layer.out_bias)
        x = self._join(x, mixed, layer.attended_norm)
        rows = x if layer.post_norm is None else self._norm(x, layer.post_norm)
        gate_up = self._linear(rows, layer.gate_up, layer.gate_up_bias)
        gate, up = op.split(gate_up, op.constant(1), 2).outputs()
        name, options = ACTIVATIONS[self.shape.activation]
        active = op.multiply(getattr(op, name)(gate, **options), up)
        return self._join(x, self._linear(active, layer.down, layer.down_bias), layer.mlp_norm)

    def _turn(self, x: Any, cos: Any, signed_sin: Any) -> Any:
        """The rotation of `draftgym.decoding.model.compact.layers.rotate`."""
        op = self.op
        first, second = op.split(x, op.constant(2), 2).outputs()
        rolled = op.concat([second, first], 2)
        return op.add(op.multiply(x, cos), op.multiply(rolled, signed_sin))

    def _join(self, x: Any, branch: Any, norm: Tensor | None) -> Any:
        if norm is not None:
            branch = self._norm(branch, norm)
        return self.op.add(x, self._times(branch, self.shape.residual_scale))

    def _norm(self, x: Any, weight: Tensor) -> Any:
        op = self.op
        square = op.reduce_mean(op.multiply(x, x), op.constant([-1]), keep_dims=True)
        root = op.sqrt(op.add(square, op.constant(np.float32(self.shape.eps))))
        return op.multiply(op.divide(x, root), op.constant(weight.numpy()))

    def _norm_heads(self, x: Any, weight: Tensor, heads: int) -> Any:
        """Norms heads each on its own, or all as one."""
        if len(weight) == self.shape.head_dim:
            return self._norm(x, weight)
        return self._heads(self._norm(self._reshape(x, [0, -1]), weight), heads)

    def _linear(self, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
        out = self.op.matmul(x, self.op.constant(weight.numpy()), False, True)
        return out if bias is None else self.op.add(out, self.op.constant(bias.numpy()))

    def _times(self, x: Any, factor: float) -> Any:
        return x if factor == 1.0 else self.op.multiply(x, self.op.constant(np.float32(factor)))

    def _heads(self, x: Any, count: int) -> Any:
        return self._reshape(x, [0, count, -1])

    def _reshape(self, x: Any, size: list[int]) -> Any:
        return self.op.reshape(x, self.op.constant(size), special_zero=True)
