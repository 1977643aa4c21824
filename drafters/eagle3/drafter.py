"""EAGLE-3 (arXiv 2503.01840): an autoregressive head on the target's own hidden states.

Notation for a position t: f_t = target taps, g_t = fused feature, e_t = embedding of the *next*
token x_{t+1}. The head reads (g_t, e_t) and predicts x_{t+2}; drafting goes on with its own output
in place of g. One decoder layer, so its keys and values depend on (g, e) alone: catching up needs
two projections and no attention (KV-only Prefill, WhiFlash section 3.4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import MAX_TREE_NODES, DraftContext
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.compiled.graph import Graph, places_seen
from draftgym.decoding.model.compact.layers import all_before
from draftgym.decoding.model.compact.rows import CosSin
from draftgym.decoding.model.device import upload
from draftgym.drafters.autoregressive import AutoregressiveDrafter
from draftgym.drafters.compiled import DraftGraph, NetworkDrafter
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.modules import in_cache, rotary_table
from draftgym.drafters.positions.paths import Paths
from draftgym.drafters.tree import scratch_rows
from draftgym.drafters.vocabulary import from_d2t


class Eagle3Drafter(NetworkDrafter, AutoregressiveDrafter):
    """Drafts a chain one token per step, or a tree one level per step.

    The state covers committed positions but the two newest: the last one has no tap yet, and the
    one before it is what the first step runs.

    Args:
        network: The trained head, in the target's dtype.
        embedding: The target's input embedding `[V, d]`, read where the head has none of its own.
        needs_target: Fingerprint of the target it was trained for, or None.
        name: How arms call it.
    """

    lag = 2

    def __init__(
        self,
        network: Eagle3Network,
        embedding: Tensor,
        needs_target: str | None = None,
        name: str = "eagle3",
    ) -> None:
        config = network.config
        self.name = name
        self.network = network.eval()
        self.embedding = network.embedding(embedding)
        self.needs_target = needs_target
        self.tap_layers = config.tap_layers
        self.max_draft_length = 16
        self.max_tree_nodes = MAX_TREE_NODES
        self.draft_rows = 1 + scratch_rows(self.max_draft_length)
        weight = network.fc.weight
        self.dtype, self.device = weight.dtype, weight.device
        self._no_carried, self._no_taps = (weight.new_empty(0, size) for size in weight.shape)
        self.draft_ids = from_d2t(network.d2t)
        limit = config.max_position_embeddings
        table = rotary_table(config.rope_parameters, config.head_dim, limit)
        self.rotary = table.to(self.dtype, self.device)

    def encode(
        self, cache: KVCache, context: DraftContext, start: int, stop: int, full: bool
    ) -> None:
        """Keys and values only; `full` also runs queries, attention, MLP and LM head."""
        taps = context.features(self.tap_layers, start, stop)
        embedded = F.embedding(context.tokens[start + 1 : stop + 1], self.embedding)
        cos_sin = self.rotary.at(torch.arange(start, stop, device=self.device))
        layer = self.network.midlayer
        if full:
            visible = all_before(len(taps), self.device) if len(taps) > 1 else None
            self._torch_run(cache, embedded, self.network.fuse(taps), cos_sin, visible)
        elif (compiled := self.compiled_for(cache, len(taps))) is not None:
            cache.write_all(*compiled.catch_up(embedded, taps, *cos_sin))
        else:
            pair = layer.pair(embedded, self.network.fuse(taps))
            cache.write(0, *layer.self_attn.keys_values(pair, cos_sin))

    def first_step(
        self, cache: KVCache, context: DraftContext, lengths: Tensor, visible: Tensor | Paths | None
    ) -> tuple[Tensor, Tensor]:
        """Runs the position before each anchor, on its true feature."""
        tokens, taps, positions = self._before(context, lengths)
        return self._run(cache, tokens, taps, self._no_carried, positions, visible)

    def _before(self, context: DraftContext, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors' tokens `[n]`, and taps `[n, k * d]` and places `[n]` of what is before them."""
        newest = lengths - 2
        start, stop = int(newest[0]), int(newest[-1]) + 1
        positions = upload(newest, self.device)
        taps = context.features(self.tap_layers, start, stop)[positions - start]
        return context.tokens[positions + 1], taps, positions

    def next_step(
        self,
        cache: KVCache,
        tokens: Tensor,
        carried: Tensor,
        positions: Tensor,
        visible: Tensor | Paths | None,
    ) -> tuple[Tensor, Tensor]:
        """Runs drafted tokens, whose features are the head's own."""
        return self._run(cache, tokens, self._no_taps, carried, positions, visible)

    def step_graph(self) -> tuple[Graph, list[Any]]:
        """`_run` in OpenVINO's operations; it gives the new keys and values, too."""
        network, layer = self.network, self.network.midlayer
        graph = DraftGraph(network.config)
        embedded, fused = self._embedded_and_fused(graph)
        feature = graph.op.concat([fused, graph.input(-1, network.config.hidden_size)], 0)
        angles, (mask, (stored,)) = graph.angles(), graph.places()
        pair, normed = self._pair(graph, embedded, feature)
        residual = normed if layer.norm_before_residual else feature
        out, keys, values = graph.run(layer, pair, residual, angles, mask, stored)
        hidden = graph.norm(out, network.norm.weight)
        carried = hidden if network.config.norm_output else out
        return graph, [graph.linear(hidden, network.lm_head.weight), carried, keys, values]

    def catch_up_graph(self) -> tuple[Graph, list[Any]]:
        """`encode` in OpenVINO's operations."""
        graph = DraftGraph(self.network.config)
        pair, _ = self._pair(graph, *self._embedded_and_fused(graph))
        attention = self.network.midlayer.self_attn
        return graph, [*graph.keys_values(attention, pair, graph.angles())]

    def _embedded_and_fused(self, graph: DraftGraph) -> tuple[Any, Any]:
        """Inputs: embeddings of some rows, and what `Eagle3Network.fuse` makes of taps."""
        network, config = self.network, self.network.config
        embedded = graph.input(-1, config.hidden_size)
        taps = graph.input(-1, network.fc.weight.shape[1])
        if config.norm_before_fc:
            taps = graph.norm(taps, network.input_norm.weight)
        if config.fc_norm:
            each = graph.op.split(taps, graph.op.constant(1), len(config.tap_layers)).outputs()
            pairs = zip(each, network.fc_norm, strict=True)
            taps = graph.op.concat([graph.norm(tap, norm.weight) for tap, norm in pairs], 1)
        return embedded, graph.linear(taps, network.fc.weight)

    def _pair(self, graph: DraftGraph, embedded: Any, feature: Any) -> tuple[Any, Any]:
        """`Eagle3Layer.pair`, and the normed feature."""
        layer = self.network.midlayer
        normed = graph.norm(feature, layer.hidden_norm.weight)
        embedded = graph.norm(embedded, layer.input_layernorm.weight)
        return graph.op.concat([embedded, normed], 1), normed

    def _run(
        self,
        cache: KVCache,
        tokens: Tensor,
        taps: Tensor,
        carried: Tensor,
        positions: Tensor,
        visible: Tensor | Paths | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits `[w, Vd]`, and the features `[w, d]` that the next step reads.

        Args:
            cache: The cache.
            tokens: What follows the rows `[w]`.
            taps: Of the rows `[w, k * d]`, where they are of the text.
            carried: Their features `[w, d]`, where they are drafted.
            positions: Where they stand `[w]`.
            visible: As `NewRows.visible`.
        """
        embedded, cos_sin = F.embedding(tokens, self.embedding), self.rotary.at(positions)
        compiled = self.compiled_for(cache, len(tokens))
        if compiled is None:
            feature = self.network.fuse(taps) if len(taps) else carried
            return self._torch_run(cache, embedded, feature, cos_sin, visible)
        assert not isinstance(visible, Paths), "these are of many places, in other caches"
        seen = places_seen(cache, len(tokens), visible)
        made = compiled.step(embedded, taps, carried, *cos_sin, seen, cache.keys, cache.values)
        cache.write_all(*made[2:])
        return made[0].clone(), made[1].clone()

    def _torch_run(
        self,
        cache: KVCache,
        embedded: Tensor,
        feature: Tensor,
        cos_sin: CosSin,
        visible: Tensor | Paths | None,
    ) -> tuple[Tensor, Tensor]:
        network, layer = self.network, self.network.midlayer
        pair = layer.pair(embedded, feature)
        out = layer.run(pair, feature, cos_sin, in_cache(cache, 0, visible))
        return network.logits(out).float(), network.carry(out)
