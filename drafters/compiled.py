"""Drafts that OpenVINO compiles for the processor, where that is faster.

A draft step is a layer or a few over one row or a few: torch starts some sixty operations for it,
and drafting takes a third longer than reading the weights would. As one graph
(`draftgym.decoding.model.compact.compiled.graph`) it takes little more. What it gives differs from
torch's by rounding alone. Compiled are the drafts of a text that is being written; those at many
places at once are torch's, as are those of a long text.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any, NamedTuple

import torch

from draftgym.decoding.drafting import DraftShape, PrefixView
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.compiled.graph import (
    CompiledGraph,
    Graph,
    Pair,
    has_forked,
)
from draftgym.decoding.model.compact.compiled.passes import (
    LARGEST,
    MOST_POSITIONS,
    MOST_ROWS,
    SMALLEST,
    STEP,
)
from draftgym.decoding.model.compact.rows import LayerWeights
from draftgym.decoding.model.interface import DecoderShape, NewRows
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.drafters.modules import DraftConfig, DraftLayer, Projections, network_fingerprint
from draftgym.drafters.positions.batched import BatchDrafter
from draftgym.drafters.positions.recorded import RecordedText


class DraftGraph(Graph):
    """Writes layers of a drafter in OpenVINO's operations.

    Args:
        config: Sizes of its network.
        layers: How many.
    """

    def __init__(self, config: DraftConfig, layers: int = 1) -> None:
        super().__init__(
            DecoderShape(
                layers=layers,
                hidden=config.hidden_size,
                heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                vocab=config.draft_vocab_size,
                eps=config.rms_norm_eps,
            )
        )

    def run(
        self, layer: DraftLayer, inputs: Any, residual: Any, angles: Pair, mask: Any, stored: Pair
    ) -> tuple[Any, Any, Any]:
        """What `DraftLayer.run` gives, and its new keys and values `[1, G, n, D]`."""
        weights = _weights(layer)
        attended, keys, values = self.attention(weights, inputs, angles, mask, stored)
        return self.behind_attention(weights, residual, attended), keys, values

    def keys_values(self, attention: Projections, x: Any, angles: Pair) -> Pair:
        """What `Projections.keys_values` gives, each `[1, G, n, D]`."""
        weights = attention.k_proj.weight, attention.v_proj.weight
        k, v = (self.heads(self.linear(x, one), attention.kv_heads) for one in weights)
        if attention.has_norms:
            k = self.norm(k, attention.k_norm.weight)
        return self.by_group(self.turn(k, *angles)), self.by_group(v)


def _weights(layer: DraftLayer) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return LayerWeights(
        input_norm=None,
        qkv=torch.cat([one.weight for one in projections]),
        qkv_bias=None,
        q_norm=attention.q_norm.weight if attention.has_norms else None,
        k_norm=attention.k_norm.weight if attention.has_norms else None,
        out=attention.o_proj.weight,
        out_bias=None,
        post_norm=layer.post_attention_layernorm.weight,
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight,
    )


class CompiledDrafter(NamedTuple):
    """What is compiled of a drafter: its step, and catching up."""

    step: CompiledGraph
    catch_up: CompiledGraph


class NetworkDrafter(BatchDrafter):
    """A drafter that is a `DraftNetwork`.

    Attributes:
        network: The network.
        layers: Layers of its cache.
        dtype: Of its weights and its cache.
        compiled: Runs drafts of a text that is being written; None for torch.
    """

    network: Any
    layers = 1
    dtype: torch.dtype
    compiled: CompiledDrafter | None = None

    @abstractmethod
    def step_graph(self) -> tuple[Graph, list[Any]]:
        """A draft step in OpenVINO's operations, and what it gives."""

    @abstractmethod
    def catch_up_graph(self) -> tuple[Graph, list[Any]]:
        """Catching up in OpenVINO's operations; keys and values `[layers, G, n, D]`."""

    @property
    def fingerprint(self) -> str:
        """Hash of the network's weights and wiring."""
        return network_fingerprint(self.network)

    def new_cache(self, rows: int, step: int | None = None) -> KVCache:
        """An empty cache for so many rows; see `KVCache` for `step`."""
        config = self.network.config
        sizes = (self.layers, config.num_key_value_heads, rows, config.head_dim)
        return KVCache(*sizes, self.dtype, self.device, step)

    def new_state(self, capacity: int) -> KVCache:
        """As `BatchDrafter.new_state`; one that grows where drafts are compiled."""
        return self.new_cache(capacity + self.draft_rows, None if self.compiled is None else STEP)

    def compiled_for(self, cache: KVCache, rows: int) -> CompiledDrafter | None:
        """What runs new rows behind a cache, which is given room for them; None for torch."""
        if self.compiled is None or cache.step is None or rows > MOST_ROWS or has_forked():
            return None
        cache.reserve(cache.length + rows)
        return self.compiled if cache.keys.shape[2] <= MOST_POSITIONS else None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or sent to another process: what is compiled stays where it was made."""
        return {**vars(self), "compiled": None}


def compile_drafter(drafter: NetworkDrafter, target: Target) -> None:
    """Lets a drafter draft compiled where that is faster; `drafter.compiling` says why or why not.

    Args:
        drafter: In float32 on the processor.
        target: Its target, whose passes are compiled, too.
    """
    numbers = sum(weight.numel() for weight in drafter.network.parameters())
    if not SMALLEST <= numbers <= LARGEST:
        return
    threads = target.precision.threads
    try:
        step = CompiledGraph(*drafter.step_graph(), threads)
        compiled = CompiledDrafter(step, CompiledGraph(*drafter.catch_up_graph(), threads))
    except DraftgymError as error:
        drafter.compiling = f"not compiled ({error.problem})"
        return
    gain = _gain(drafter, compiled, target)
    is_taken = gain > 1.1
    drafter.compiled = compiled if is_taken else None
    drafter.compiling = f"{'' if is_taken else 'not '}compiled ({gain:.2f} times as fast)"


@torch.inference_mode()
def _gain(
    drafter: NetworkDrafter, compiled: CompiledDrafter, target: Target, repeats: int = 4
) -> float:
    """How many times faster than torch's a compiled draft is, behind a pass of the target."""
    length, tokens = 96, torch.arange(97) % target.vocab_size
    taps = torch.ones(length + 1, drafter.network.fc.weight.shape[1])
    text = RecordedText(tokens, 1, taps, drafter.tap_layers, GreedyRule())
    one_row = NewRows(target.decoder.new_cache(1), tokens[:1])
    drafter.compiled = compiled  # it wants a cache that grows
    state = drafter.new_state(length + 1)
    drafter.catch_up(state, PrefixView(text, length))
    begun = state.length
    seconds = {compiled: float("inf"), None: float("inf")}
    for _ in range(repeats):  # interleaved, so that drift hits both; the first one warms up
        for way in seconds:
            drafter.compiled = way
            target.decoder.forward([one_row])
            start = time.perf_counter()
            drafter.catch_up(state, text)
            drafter.propose(state, text, DraftShape(min(4, drafter.max_draft_length)))
            seconds[way] = min(seconds[way], time.perf_counter() - start)
            state.roll_back(begun)
    drafter.compiled = None
    return seconds[None] / seconds[compiled]
