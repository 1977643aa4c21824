"""EAGLE-3's training-time test: the head is run on its own outputs, several steps deep.

At step k the query of an anchor a reads its own output of step k - 1 and the embedding of the token
at a + k. It sees the step-0 keys of positions before the anchor, and of the later steps only its
own (arXiv 2503.01840, section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.device import to_host
from draftgym.decoding.model.target import Target
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.eagle3.image_drafter import eagle3_drafter
from draftgym.drafters.eagle3.images import image_rows, see
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.modules import KeysValues, block_attention, rotary_table
from draftgym.drafters.training.data.features import FeatureBatch
from draftgym.drafters.training.objectives.candidates import CandidateSampler
from draftgym.drafters.training.objectives.unroll import Unroller


class Eagle3Unroller(Unroller[Eagle3Network]):
    """An EAGLE-3 head in training.

    Args:
        network: The head.
        target: The target.
        steps: Draft steps unrolled, K.
        sampler: See `Unroller`.
    """

    def __init__(
        self,
        network: Eagle3Network,
        target: Target,
        steps: int = 5,
        sampler: CandidateSampler | None = None,
    ) -> None:
        super().__init__(network, target, sampler)
        self.depth = steps
        self.student_rows = network.lm_head.weight
        config = network.config
        table = rotary_table(
            config.rope_parameters, config.head_dim, config.max_position_embeddings
        )
        self.rotary = table.to(torch.float32, target.device)
        self.image_tokens = torch.tensor(sorted(target.image_tokens), dtype=torch.long)

    def outputs(self, batch: FeatureBatch, anchors: Tensor, paths: Tensor) -> Tensor:
        """See `Unroller.outputs`."""
        network, layer = self.network, self.network.midlayer
        index, depth = anchors - 1, paths.shape[-1]  # the first query: the position before
        rows = torch.arange(len(anchors), device=anchors.device)[:, None]
        positions = torch.arange(batch.tokens.shape[1], device=anchors.device)
        feature, kept = self._seen(batch, network.fuse(batch.taps))
        pair = layer.pair(self._embed(batch.tokens.roll(-1, 1)), feature)
        context = layer.self_attn.keys_values(pair, self.rotary.at(positions))
        visible = (positions <= index[..., None]) & kept[:, None]  # [B, R, S]
        pair, feature = pair[rows, index], feature[rows, index]
        drafted: list[KeysValues] = []
        outputs: list[Tensor] = []

        def attend(queries: Tensor, own: KeysValues) -> Tensor:
            if outputs:  # the keys of the first step are the text's
                drafted.append(own)
            behind = block_attention(queries.unsqueeze(2), context, visible, _stack(drafted))
            return behind.squeeze(2)

        for step in range(depth):
            if step:
                pair = layer.pair(self._embed(paths[..., step - 1]), feature)
            out = layer.run(pair, feature, self.rotary.at(index + step), attend)
            outputs.append(network.norm(out))
            feature = network.carry(out)
        return torch.stack(outputs, 2)

    def drafter(self) -> Eagle3Drafter:
        """See `Unroller.drafter`."""
        return eagle3_drafter(self.network, self.embedding, self.image_tokens.tolist())

    def _seen(self, batch: FeatureBatch, fused: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads: features `[B, S, d]`, and which positions it sees `[B, S]`."""
        if self.network.config.image_queries is None:
            return fused, torch.ones_like(batch.tokens, dtype=torch.bool)
        seen = [
            see(self.network.images, features, image_rows(tokens, length, self.image_tokens))
            for features, tokens, length in zip(
                fused, batch.tokens, to_host(batch.prompt_lengths).tolist(), strict=True
            )
        ]
        return torch.stack([one.features for one in seen]), torch.stack([one.kept for one in seen])

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding).float()


def _stack(own: list[KeysValues]) -> KeysValues | None:
    """Keys and values of the later steps as `[B, R, steps, G, D]`; None before the first."""
    if not own:
        return None
    keys, values = zip(*own, strict=True)
    return torch.stack(keys, 2), torch.stack(values, 2)
