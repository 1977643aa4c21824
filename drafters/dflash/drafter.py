"""DFlash (arXiv 2602.06036): a block-diffusion drafter that fills a whole block in one pass.

The block is the anchor followed by mask tokens; the output at block position k predicts the token
k places after the anchor. The target's taps never enter as input rows: they are fused and injected
as extra keys and values into every layer, so catching up is KV-only by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftgym.decoding.drafting import MAX_TREE_NODES, DraftContext, Drafter, DraftShape
from draftgym.decoding.model.cache import KVCache
from draftgym.decoding.model.layers import attend
from draftgym.decoding.model.products import Products
from draftgym.decoding.model.weights import hash_tensors
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.modules import DraftLayer, DraftNetwork, RMSNorm, frozen_rows, rotary_table
from draftgym.drafters.tree import best_first_tree
from draftgym.drafters.vocabulary import from_d2t


@dataclass(frozen=True)
class DFlashConfig:
    """Sizes and wiring of a DFlash drafter.

    Attributes:
        hidden_size: Width, equal to the target's, d.
        intermediate_size: Width of the MLPs.
        num_hidden_layers: Draft layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads.
        head_dim: Size of a head.
        rms_norm_eps: Epsilon of the norms.
        vocab_size: Target vocabulary, V.
        draft_vocab_size: Tokens it can propose, Vd; V for all.
        max_position_embeddings: Longest sequence it can draft for.
        rope_parameters: Rotary settings (`rope_theta`, scaling).
        tap_layers: 0-based target layers whose outputs are fused (`target_layer_ids`).
        block_size: Anchor plus masks, B; B - 1 tokens are drafted.
        mask_token_id: Token id that stands for "to be filled".
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    vocab_size: int
    draft_vocab_size: int
    max_position_embeddings: int
    rope_parameters: dict[str, Any]
    tap_layers: tuple[int, ...]
    block_size: int
    mask_token_id: int


def default_taps(target_layers: int, taps: int = 5) -> tuple[int, ...]:
    """`taps` layers spread from the second to the third-last one (the published rule)."""
    if taps == 1:
        return (target_layers // 2,)
    span = target_layers - 4
    return tuple(max(0, round(1 + i * span / (taps - 1))) for i in range(taps))


class DFlashLayer(DraftLayer):
    """A Qwen3-style layer; context keys and values come from outside."""

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__(config, inputs=config.hidden_size, query_key_norms=True)


class DFlashNetwork(DraftNetwork):
    """The drafter's weights under their published names.

    Embedding and LM head are the target's, unless its checkpoint brings others. `d2t` and `t2d`
    restrict what it proposes, so that only those rows of the target's head are read.

    Args:
        config: Sizes and wiring.
        draft_ids: Target ids of the draft vocabulary, ascending `[Vd]`; None for the first Vd.
        own_embedding: Whether the checkpoint brings an input embedding that is not the target's.
        own_head: The same of the LM head.
    """

    def __init__(
        self,
        config: DFlashConfig,
        draft_ids: Tensor | None = None,
        own_embedding: bool = False,
        own_head: bool = False,
    ) -> None:
        super().__init__(config, draft_ids, own_embedding)
        self.config = config
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(len(config.tap_layers) * size, size, bias=False)
        self.hidden_norm = RMSNorm(size, eps)
        self.layers = nn.ModuleList(DFlashLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(size, eps)
        self.lm_head = frozen_rows(config.draft_vocab_size, size) if own_head else None

    @property
    def blocks(self) -> list[DFlashLayer]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, DFlashLayer)]

    def head(self, of_target: Tensor) -> Tensor:
        """The LM head over the draft vocabulary `[Vd, d]`: its own, or the target's rows."""
        if self.lm_head is not None:
            return self.lm_head.weight
        if self.config.draft_vocab_size == self.config.vocab_size:
            return of_target
        return of_target[from_d2t(self.d2t)]

    def fuse(self, taps: Tensor) -> Tensor:
        """Context features `[..., d]` of concatenated taps `[..., k * d]`."""
        out: Tensor = self.hidden_norm(self.fc(taps))
        return out


@dataclass
class DFlashState:
    """Injected keys and values of committed positions, in every draft layer."""

    cache: KVCache


class DFlashDrafter(Drafter):
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
        self.network = network.eval()
        self.needs_target = needs_target
        self.tap_layers = config.tap_layers
        self.max_draft_length = config.block_size - 1
        self.max_tree_nodes = MAX_TREE_NODES
        self.dtype = network.fc.weight.dtype
        self.embedding = network.embedding(embedding)
        full = config.draft_vocab_size == config.vocab_size
        self.draft_ids = None if full else from_d2t(network.d2t)
        self.head = network.head(head)
        self.products = products or Products()
        limit = config.max_position_embeddings
        self.rotary = rotary_table(config.rope_parameters, config.head_dim, limit).to(self.dtype)

    @property
    def fingerprint(self) -> str:
        """Hash of the drafter's weights."""
        return hash_tensors(self.network.state_dict())

    def new_state(self, capacity: int) -> DFlashState:
        """An empty cache, with room for a block behind the committed positions."""
        config = self.network.config
        room = capacity + config.block_size
        layers, groups = config.num_hidden_layers, config.num_key_value_heads
        return DFlashState(KVCache(layers, groups, room, config.head_dim, self.dtype))

    @torch.inference_mode()
    def catch_up(self, state: DFlashState, context: DraftContext, full: bool = False) -> int:
        """Injects positions up to `n - 2`: fuse, then two projections a layer, nothing else.

        `full` adds nothing: context positions are never rows of this network, so it has no queries,
        attention or MLP for them that could be left out.
        """
        start, stop = state.cache.length, context.tokens.shape[0] - 1
        if stop <= start:
            return 0
        fused = self.network.fuse(context.features(self.tap_layers, start, stop))
        cos_sin = self.rotary.at(torch.arange(start, stop))
        for index, layer in enumerate(self.network.blocks):
            state.cache.write(index, *layer.self_attn.keys_values(fused, cos_sin))
        state.cache.keep(stop - start)
        return stop - start

    @torch.inference_mode()
    def propose(self, state: DFlashState, context: DraftContext, shape: DraftShape) -> Proposal:
        """One pass over the anchor and the masks behind it.

        The block always has its trained width: a shorter draft is its beginning, so that a draft
        length changes what is verified and never what is proposed.
        """
        config = self.network.config
        anchor = context.tokens.shape[0] - 1
        block = torch.full((config.block_size,), config.mask_token_id)
        block[0] = context.tokens[anchor]
        cos_sin = self.rotary.at(torch.arange(anchor, anchor + config.block_size))
        x = F.embedding(block, self.embedding)
        for index, layer in enumerate(self.network.blocks):
            normed = layer.input_layernorm(x)
            keys_values = layer.self_attn.keys_values(normed, cos_sin)
            keys, values = state.cache.write(index, *keys_values)
            queries = layer.self_attn.queries(normed, cos_sin)
            x = layer.finish(x, attend(queries, keys, values, None))
        logits = self.products(self.network.norm(x[1 : shape.depth + 1]), self.head).float()
        positions = list(range(anchor + 1, anchor + 1 + shape.depth))
        if shape.is_tree:
            levels = context.rule.candidates(logits, positions, shape.budget, self.draft_ids)
            return best_first_tree(shape, levels)
        return Proposal.chain(*context.rule.draft(logits, positions, self.draft_ids))
