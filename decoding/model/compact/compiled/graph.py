"""Decoder layers in OpenVINO's operations, and what runs them on the processor.

Notation: n = new rows, C = rows of the cache, d = hidden size, H, G = query and key/value
heads, D = their size.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.cache import KVRows
from draftgym.decoding.model.compact.rows import LayerWeights
from draftgym.decoding.model.few_bits import few_bits, head_form
from draftgym.decoding.model.interface import DecoderShape

ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "silu": ("swish", {}),
    "relu": ("relu", {}),
    "gelu": ("gelu", {"approximation_mode": "erf"}),
    "gelu_pytorch_tanh": ("gelu", {"approximation_mode": "tanh"}),
}
"""What the activations of configurations are called in OpenVINO."""

_forked = False


def _forget() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # OpenVINO's threads stay with the parent


def openvino_is_there() -> bool:
    """Whether passes can be compiled here."""
    return not _forked and importlib.util.find_spec("openvino") is not None


def has_forked() -> bool:
    """Whether this process was forked: OpenVINO's threads stayed with its parent."""
    return _forked


Pair = tuple[Any, Any]


class CompiledGraph:
    """A graph that runs on the processor in float32.

    Args:
        graph: Its inputs.
        outputs: What it gives.
        threads: CPU threads.

    Raises:
        DraftgymError: OpenVINO cannot run it.
    """

    def __init__(self, graph: Graph, outputs: Sequence[Any], threads: int) -> None:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # rows in few bits would not repeat
        }
        model = openvino.Model([graph.op.result(one) for one in outputs], graph.inputs, "pass")
        try:
            compiled = openvino.Core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise DraftgymError(
                f"OpenVINO cannot compile the pass: {str(error).splitlines()[0]}",
                "use --backend compact",
            ) from error
        self._request = compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """What it gives, which holds until it runs again."""
        given = [one.numpy() for one in inputs]
        out = self._request.infer(given, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(one) for one in out.values()]


def places_seen(cache: KVRows, n: int, visible: Tensor | None) -> Tensor:
    """Which places of a cache and which new rows each row sees, as an additive mask.

    Args:
        cache: The cache.
        n: New rows.
        visible: As in `NewRows`.

    Returns:
        `[1, 1, n, C + n]`.
    """
    cached, stored = cache.length, cache.keys.shape[2]
    mask = np.zeros((1, 1, n, stored + n), np.float32)  # numpy: torch takes several times as long
    mask[..., cached:] = -np.inf
    seen = np.tri(n, dtype=np.bool_) if visible is None else visible.numpy()
    newest = seen.shape[1] - n  # rows of earlier passes that some see and some do not
    mask[..., stored:][..., seen[:, newest:]] = 0
    mask[..., cached - newest : cached][..., ~seen[:, :newest]] = -np.inf
    return torch.from_numpy(mask)


class Graph:
    """Writes layers of a decoder in OpenVINO's operations.

    Args:
        shape: Sizes of the decoder.
        form: In which few bits its weights are kept, without loss; see `few_bits`.
    """

    def __init__(self, shape: DecoderShape, form: str = "") -> None:
        from openvino import opset15

        self.op, self.shape, self.form = opset15, shape, form
        self.inputs: list[Any] = []

    def input(self, *size: int) -> Any:
        """A new input of float32 numbers; -1 is any size."""
        self.inputs.append(self.op.parameter(list(size), np.float32))
        return self.inputs[-1]

    def angles(self) -> Pair:
        """New inputs: angles of the rows, as `RotaryTable.at` gives them."""
        size = (-1, 1, self.shape.head_dim)
        return self.input(*size), self.input(*size)

    def places(self) -> tuple[Any, list[Pair]]:
        """New inputs: the mask of `places_seen`, then stored keys and values.

        Returns:
            The mask, and for each layer its keys and values `[1, G, C, D]`.
        """
        op, shape = self.op, self.shape
        mask = self.input(1, 1, -1, -1)
        stores = [self.input(shape.layers, shape.kv_heads, -1, shape.head_dim) for _ in range(2)]
        cached = (op.split(store, op.constant(0), shape.layers).outputs() for store in stores)
        return mask, list(zip(*cached, strict=True))

    def attention(
        self, layer: LayerWeights, x: Any, angles: Pair | None, mask: Any, stored: Pair
    ) -> tuple[Any, Any, Any]:
        """What a layer's attention gives `[n, H * D]`, and its new keys and values `[1, G, n, D]`.

        Args:
            layer: Its weights.
            x: What goes into it `[n, d]`.
            angles: Of the rows; None where nothing is turned.
            mask: From `places`.
            stored: Its keys and values, from there, too.
        """
        q, k, v = self._projections(layer, x, angles)
        new = self.by_group(k), self.by_group(v)
        keys, values = (self.op.concat(both, 2) for both in zip(stored, new, strict=True))
        return self._attend(q, keys, values, mask), *new

    def behind_attention(self, layer: LayerWeights, x: Any, attended: Any) -> Any:
        """Output projection and MLP, each joined to the residual stream."""
        op = self.op
        mixed = self.linear(attended, layer.out, layer.out_bias)
        x = self._join(x, mixed, layer.attended_norm)
        rows = x if layer.post_norm is None else self.norm(x, layer.post_norm)
        gate_up = self.linear(rows, layer.gate_up, layer.gate_up_bias)
        gate, up = op.split(gate_up, op.constant(1), 2).outputs()
        name, options = ACTIVATIONS[self.shape.activation]
        active = op.multiply(getattr(op, name)(gate, **options), up)
        return self._join(x, self.linear(active, layer.down, layer.down_bias), layer.mlp_norm)

    def norm(self, x: Any, weight: Tensor) -> Any:
        """Root-mean-square normalisation over the last axis."""
        op = self.op
        square = op.reduce_mean(op.multiply(x, x), op.constant([-1]), keep_dims=True)
        root = op.sqrt(op.add(square, op.constant(np.float32(self.shape.eps))))
        return op.multiply(op.divide(x, root), op.constant(weight.numpy()))

    def linear(self, x: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
        """`x @ weight.T + bias`."""
        out = self.op.matmul(x, self._kept(weight, self.form), False, True)
        return out if bias is None else self.op.add(out, self.op.constant(bias.numpy()))

    def head(self, x: Any, weight: Tensor) -> Any:
        """Scores of the LM head."""
        return self.op.matmul(x, self._kept(weight, head_form(self.form)), False, True)

    def _kept(self, weight: Tensor, form: str) -> Any:
        """A weight `[O, I]`, in few bits and what makes numbers of them, or as it is."""
        op = self.op
        if not form:
            return op.constant(weight.numpy())
        few = few_bits(weight, form)
        if few.lowest is None:
            numbers = op.convert(op.constant(few.whole.numpy()), "f32")
        else:
            zero = op.constant((-few.lowest / few.step).numpy())
            numbers = op.subtract(op.convert(_four_bits(few.whole), "f32"), zero)
        numbers = op.multiply(numbers, op.constant(few.step.numpy()))
        return op.reshape(numbers, op.constant(list(weight.shape)), special_zero=False)

    def _projections(self, layer: LayerWeights, x: Any, angles: Any) -> tuple[Any, Any, Any]:
        """Queries, keys and values `[n, heads, D]`, the first two normed and turned."""
        shape = self.shape
        if layer.input_norm is not None:
            x = self.norm(x, layer.input_norm)
        qkv = self.linear(x, layer.qkv, layer.qkv_bias)
        qkv = self.heads(qkv, shape.heads + 2 * shape.kv_heads)
        turned, v = self._parted(qkv, shape.heads + shape.kv_heads, shape.kv_heads)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._parted(turned, shape.heads, shape.kv_heads)
            q = self._norm_heads(q, layer.q_norm, shape.heads)
            k = self._norm_heads(k, layer.k_norm, shape.kv_heads)
            if angles is not None:
                q, k = self.turn(q, *angles), self.turn(k, *angles)
            return q, k, v
        if angles is not None:  # one rotation for both saves six operations a layer
            turned = self.turn(turned, *angles)
        return (*self._parted(turned, shape.heads, shape.kv_heads), v)

    def _parted(self, x: Any, *heads: int) -> list[Any]:
        """Heads `[n, sum(heads), D]` in parts."""
        op = self.op
        split = op.variadic_split(x, op.constant(1), op.constant(list(heads)))
        parts: list[Any] = split.outputs()
        return parts

    def by_group(self, x: Any) -> Any:
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

    def turn(self, x: Any, cos: Any, signed_sin: Any) -> Any:
        """The rotation of `draftgym.decoding.model.compact.layers.rotate`."""
        op = self.op
        first, second = op.split(x, op.constant(2), 2).outputs()
        rolled = op.concat([second, first], 2)
        return op.add(op.multiply(x, cos), op.multiply(rolled, signed_sin))

    def _join(self, x: Any, branch: Any, norm: Tensor | None) -> Any:
        if norm is not None:
            branch = self.norm(branch, norm)
        return self.op.add(x, self._times(branch, self.shape.residual_scale))

    def _norm_heads(self, x: Any, weight: Tensor, heads: int) -> Any:
        """Norms heads each on its own, or all as one."""
        if len(weight) == self.shape.head_dim:
            return self.norm(x, weight)
        return self.heads(self.norm(self._reshape(x, [0, -1]), weight), heads)

    def _times(self, x: Any, factor: float) -> Any:
        return x if factor == 1.0 else self.op.multiply(x, self.op.constant(np.float32(factor)))

    def heads(self, x: Any, count: int) -> Any:
        """`[n, count * D]` to `[n, count, D]`."""
        return self._reshape(x, [0, count, -1])

    def _reshape(self, x: Any, size: list[int]) -> Any:
        return self.op.reshape(x, self.op.constant(size), special_zero=True)


def _four_bits(whole: Tensor) -> Any:
    """A constant of numbers from 0 to 15, two in a byte."""
    import openvino
    from openvino import opset15

    first, second = whole.flatten().unflatten(0, (-1, 2)).unbind(-1)
    constant = openvino.Tensor(openvino.Type.u4, list(whole.shape))
    constant.data[:] = (first | (second << 4)).numpy().reshape(constant.data.shape)
    return opset15.constant(constant)
