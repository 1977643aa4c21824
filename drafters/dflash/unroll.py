"""DFlash in training: masked blocks behind many anchors of a text, all in one pass.

A block is the clean anchor followed by masks; its k-th output predicts the token at a + 1 + k,
whatever stands before it. A block sees the context strictly before its anchor (the anchor's own tap
does not exist when drafting) and itself in full, never another block (arXiv 2602.06036, 4.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.dflash.network import DFlashNetwork
from draftgym.drafters.modules import Attend, DraftLayer, KeysValues, block_attention, rotary_table
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives.candidates import CandidateSampler
from draftgym.drafters.training.objectives.unroll import Unroller


class DFlashUnroller(Unroller[DFlashNetwork]):
    """A DFlash drafter in training; the target's embedding and head are shared and frozen.

    Args:
        network: The drafter.
        target: The target.
        sampler: See `Unroller`.
    """

    def __init__(
        self, network: DFlashNetwork, target: Target, sampler: CandidateSampler | None = None
    ) -> None:
        super().__init__(network, target, sampler)
        config = network.config
        self.depth = config.block_size - 1
        self.target_head = target.decoder.head
        self.student_rows = network.head(target.decoder.head).clone()
        table = rotary_table(
            config.rope_parameters, config.head_dim, config.max_position_embeddings
        )
        self.rotary = table.to(torch.float32, target.device)

    def outputs(self, batch: FeatureBatch, anchors: Tensor, paths: Tensor) -> Tensor:
        """See `Unroller.outputs`; the tokens of `paths` play no part, only how many there are."""
        network, width = self.network, self.network.config.block_size
        device = anchors.device
        positions = torch.arange(batch.tokens.shape[1], device=device)
        fused = network.fuse(batch.taps)
        everywhere = self.rotary.at(positions)
        visible = positions < anchors[..., None]
        blocks = self.rotary.at(anchors[..., None] + torch.arange(width, device=device))
        tokens = anchors.new_full((*anchors.shape, width), network.config.mask_token_id)
        tokens[..., 0] = batch.tokens.gather(1, anchors)

        def injected(layer: DraftLayer) -> Attend:
            context = layer.self_attn.keys_values(fused, everywhere)

            def attend(queries: Tensor, own: KeysValues) -> Tensor:
                return block_attention(queries, context, visible, own)

            return attend

        x = F.embedding(tokens, self.embedding).float()
        x = network.run(x, blocks, [injected(layer) for layer in network.blocks])
        out: Tensor = network.norm(x[..., 1 : 1 + paths.shape[-1], :])
        return out

    def drafter(self) -> DFlashDrafter:
        """See `Unroller.drafter`."""
        return DFlashDrafter(self.network, self.embedding, self.target_head)
