"""DFlash (arXiv 2602.06036): a block-diffusion drafter that fills a whole block in one pass.

The block is the anchor followed by mask tokens; the output at block position k predicts the token
k places after the anchor. The target's taps never enter as input rows: they are fused and injected
as extra keys and values into every layer, so catching up is KV-only by construction.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import MAX_TREE_NODES, DraftContext, DraftShape
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.compiled.graph import Graph, places_seen
from draftgym.decoding.model.compact.products import Products
from draftgym.decoding.model.device import upload
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.base import Drafted
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.compiled import DraftGraph, NetworkDrafter
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.modules import in_cache, rotary_table
from draftgym.drafters.positions.batched import Shapes
from draftgym.drafters.tree import best_prefixes
from draftgym.drafters.vocabulary import from_d2t


class DFlashDrafter(NetworkDrafter):
    """Drafts a chain of up to `block_size - 1` tokens, or a tree as deep, in one pass.

    Args:
        network: The trained drafter, in the target's dtype.
        embedding: The target's input embedding `[V, d]`, read where it has none of its own.
        head: The target's LM head `[V, d]`, the same.
        needs_target: Fingerprint of the target it was trained for, or None.
        name: How arms call it.
        products: How it multiplies with the LM head.
    """

    def __init__(
        self,
        network: DFlashNetwork,
        embedding: Tensor,
        head: Tensor,
        needs_target: str | None = None,
        name: str = "dflash",
        products: Products | None = None,
    ) -> None:
        config = network.config
        self.name = name
        self.network, self.layers = network.eval(), config.num_hidden_layers
        self.needs_target = needs_target
        self.tap_layers = config.tap_layers
        self.max_draft_length = config.block_size - 1
        self.max_tree_nodes = MAX_TREE_NODES
        self.draft_rows = config.block_size
        self.dtype, self.device = network.fc.weight.dtype, network.fc.weight.device
        self.embedding = network.embedding(embedding)
        full = config.draft_vocab_size == config.vocab_size
        self.draft_ids = None if full else from_d2t(network.d2t)
        self.head = network.head(head)
        self.products = products or Products()
        limit = config.max_position_embeddings + config.block_size  # a block has its whole width
        table = rotary_table(config.rope_parameters, config.head_dim, limit)
        self.rotary = table.to(self.dtype, self.device)

    @classmethod
    def of(cls, network: DFlashNetwork, target: Target, needs_target: str | None) -> DFlashDrafter:
        """Makes a loaded network the drafter of a target."""
        decoder, products = target.decoder, Products(target.precision.packed)
        return cls(network, decoder.embedding, decoder.head, needs_target, products=products)

    def encode(
        self, cache: KVCache, context: DraftContext, start: int, stop: int, full: bool
    ) -> None:
        """Injects positions: fuse, then two projections a layer, nothing else.

        `full` adds nothing: context positions are never rows of this network, so it has no queries,
        attention or MLP for them that could be left out.
        """
        taps = context.features(self.tap_layers, start, stop)
        cos_sin = self.rotary.at(torch.arange(start, stop, device=self.device))
        if (compiled := self.compiled_for(cache, len(taps))) is not None:
            cache.write_all(*compiled.catch_up(taps, *cos_sin))
            return
        fused = self.network.fuse(taps)
        for index, layer in enumerate(self.network.blocks):
            cache.write(index, *layer.self_attn.keys_values(fused, cos_sin))

    def draft_at(
        self, cache: KVCache, context: DraftContext, lengths: Tensor, shapes: Shapes
    ) -> list[list[Proposal]]:
        """One pass over the blocks of all places, an anchor with the masks behind it each.

        A block always has its trained width: a shorter draft is its beginning, so that a draft
        length changes what is verified and never what is proposed.
        """
        asked = [shape for some in shapes for shape in some]
        depth = max(shape.depth for shape in asked)
        rows = self._logits(cache, context, lengths, depth)
        positions = (lengths[:, None] + torch.arange(depth)).flatten().tolist()
        rule, widest = context.rule, max((s.budget for s in asked if s.is_tree), default=0)
        if rule.picks_best and (len(lengths) > 1 or any(s.may_stop for s in asked)):
            widest = max(widest, 1)  # somebody looks at scores
        if widest:
            best = rule.candidates(rows, positions, widest, self.draft_ids)
            levels = [column.tolist() for column in (best.tokens, best.logprobs, best.scores)]
        if widest and rule.picks_best:
            drafted: Drafted = best.tokens[:, 0], best.logprobs[:, 0], None
            scores: Tensor | None = best.scores[:, 0]
        elif not all(shape.is_tree for shape in asked):
            drafted, scores = rule.draft(rows, positions, self.draft_ids), None

        def draw(place: int, shape: DraftShape) -> Proposal:
            at = slice(place * depth, place * depth + shape.depth)
            if shape.is_tree:
                return best_prefixes(shape, *(column[at] for column in levels))
            tokens, logprobs, probs = drafted
            sampled = None if probs is None or len(lengths) > 1 else probs[at]
            own = None if scores is None else scores[at]
            return Proposal.chain(tokens[at], logprobs[at], sampled, own)

        return [[draw(place, shape) for shape in some] for place, some in enumerate(shapes)]

    def _logits(self, cache: KVCache, context: DraftContext, lengths: Tensor, depth: int) -> Tensor:
        """Logits `[R * depth, Vd]` of the first tokens behind each anchor."""
        network, width = self.network, self.network.config.block_size
        anchors, device = upload(lengths - 1, self.device), self.device
        blocks = torch.full((len(lengths), width), network.config.mask_token_id, device=device)
        blocks[:, 0] = context.tokens[anchors]
        positions = (anchors[:, None] + torch.arange(width, device=device)).flatten()
        x, cos_sin = F.embedding(blocks.flatten(), self.embedding), self.rotary.at(positions)
        if (compiled := self.compiled_for(cache, len(x))) is not None:
            seen = places_seen(cache, width, torch.ones(width, width, dtype=torch.bool))
            (scores,) = compiled.step(x, *cos_sin, seen, cache.keys, cache.values)
            return scores[:depth].clone()
        visible = self.own_rows(cache, lengths, width)
        x = network.run(x, cos_sin, [in_cache(cache, i, visible) for i in range(self.layers)])
        wanted = x.unflatten(0, blocks.shape)[:, 1 : depth + 1].flatten(0, 1)
        return self.products(network.norm(wanted), self.head).float()

    def step_graph(self) -> tuple[Graph, list[Any]]:
        """A block in OpenVINO's operations; it gives the logits of all rows but the anchor's."""
        network = self.network
        graph = DraftGraph(network.config, self.layers)
        x = graph.input(-1, network.config.hidden_size)
        angles, (mask, stored) = graph.angles(), graph.places()
        for layer, its in zip(network.blocks, stored, strict=True):
            inputs = graph.norm(x, layer.input_layernorm.weight)
            x, _, _ = graph.run(layer, inputs, x, angles, mask, its)
        sizes = graph.op.constant([1, network.config.block_size - 1])
        _, masks = graph.op.variadic_split(x, graph.op.constant(0), sizes).outputs()
        return graph, [graph.linear(graph.norm(masks, network.norm.weight), self.head)]

    def catch_up_graph(self) -> tuple[Graph, list[Any]]:
        """`encode` in OpenVINO's operations."""
        network = self.network
        graph = DraftGraph(network.config, self.layers)
        taps, angles = graph.input(-1, network.fc.weight.shape[1]), graph.angles()
        fused = graph.norm(graph.linear(taps, network.fc.weight), network.hidden_norm.weight)
        pairs = [graph.keys_values(layer.self_attn, fused, angles) for layer in network.blocks]
        return graph, [graph.op.concat([*each], 0) for each in zip(*pairs, strict=True)]
