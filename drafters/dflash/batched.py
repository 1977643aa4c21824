"""DFlash at many positions of a text: their blocks share one pass and the text's injected keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import DraftContext, DraftShape
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.verification import Candidates
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.modules import block_attention
from draftgym.drafters.tree import best_first_tree


@torch.inference_mode()
def dflash_at_each(
    drafter: DFlashDrafter,
    context: DraftContext,
    lengths: Sequence[int],
    shapes: Sequence[Sequence[DraftShape]],
) -> list[list[Proposal]]:
    """Proposals of `DFlashDrafter.propose` at several prefixes of a text.

    Args:
        drafter: The drafter.
        context: The whole text.
        lengths: Committed tokens at each place `[R]`.
        shapes: Per place, what to draft.
    """
    anchors = torch.tensor(lengths) - 1
    logits = _block_logits(drafter, context, anchors)
    depth = logits.shape[1]
    positions = (anchors[:, None] + torch.arange(1, depth + 1)).flatten().tolist()
    rows = logits.flatten(0, 1)
    chains = context.rule.draft(rows, positions, drafter.draft_ids)[:2]
    tokens, logprobs = (column.view(-1, depth) for column in chains)
    widest = max((s.budget for some in shapes for s in some if s.is_tree), default=0)
    trees = None
    if widest:
        trees = context.rule.candidates(rows, positions, widest, drafter.draft_ids)

    def draw(place: int, shape: DraftShape) -> Proposal:
        if not shape.is_tree:
            return Proposal.chain(tokens[place, : shape.depth], logprobs[place, : shape.depth])
        assert trees is not None
        levels = slice(place * depth, place * depth + shape.depth)
        columns = (trees.tokens, trees.logprobs, trees.scores)
        return best_first_tree(shape, Candidates(*(c[levels, : shape.budget] for c in columns)))

    return [[draw(place, shape) for shape in some] for place, some in enumerate(shapes)]


def _block_logits(drafter: DFlashDrafter, context: DraftContext, anchors: Tensor) -> Tensor:
    """Draft logits behind each anchor, float32 `[R, block_size - 1, Vd]`."""
    network, width = drafter.network, drafter.network.config.block_size
    known = torch.arange(int(anchors.max()))
    fused = network.fuse(context.features(drafter.tap_layers, 0, len(known)))[None]
    everywhere = drafter.rotary.at(known)
    blocks = drafter.rotary.at(anchors[None, :, None] + torch.arange(width))
    visible = (known < anchors[:, None])[None]
    tokens = anchors.new_full((1, len(anchors), width), network.config.mask_token_id)
    tokens[..., 0] = context.tokens[anchors]
    x = F.embedding(tokens, drafter.embedding)
    for layer in network.blocks:
        normed = layer.input_layernorm(x)
        injected = layer.self_attn.keys_values(fused, everywhere)
        own = layer.self_attn.keys_values(normed, blocks)
        queries = layer.self_attn.queries(normed, blocks)
        x = layer.finish(x, block_attention(queries, injected, visible, own))
    outputs = network.norm(x[0, :, 1:])
    logits = drafter.products(outputs.flatten(0, 1), drafter.head).float()
    return logits.view(*outputs.shape[:2], -1)
