"""EAGLE-3 (arXiv 2503.01840): an autoregressive head on the target's own hidden states.

Notation for a position t: f_t = target taps, g_t = fused feature, e_t = embedding of the *next*
token x_{t+1}. The head reads (g_t, e_t) and predicts x_{t+2}; drafting goes on with its own output
in place of g. One decoder layer, so its keys and values depend on (g, e) alone: catching up needs
two projections and no attention (KV-only Prefill, WhiFlash section 3.4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import MAX_TREE_NODES, DraftContext
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.layers import all_before
from draftgym.decoding.model.device import upload
from draftgym.decoding.model.target import Target
from draftgym.drafters.autoregressive import AutoregressiveDrafter
from draftgym.drafters.eagle3.network import Eagle3Network
from draftgym.drafters.modules import in_cache, network_fingerprint, rotary_table
from draftgym.drafters.paths import Paths
from draftgym.drafters.tree import scratch_rows
from draftgym.drafters.vocabulary import from_d2t


class Eagle3Drafter(AutoregressiveDrafter):
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
        self.dtype, self.device = network.fc.weight.dtype, network.fc.weight.device
        self.draft_ids = from_d2t(network.d2t)
        limit = config.max_position_embeddings
        table = rotary_table(config.rope_parameters, config.head_dim, limit)
        self.rotary = table.to(self.dtype, self.device)

    @classmethod
    def of(cls, network: Eagle3Network, target: Target, needs_target: str | None) -> Eagle3Drafter:
        """Makes a loaded network the drafter of a target."""
        return cls(network, target.decoder.embedding, needs_target)

    @property
    def fingerprint(self) -> str:
        """Hash of the head's weights and wiring."""
        return network_fingerprint(self.network)

    def new_cache(self, rows: int) -> KVCache:
        """A cache of one layer."""
        config = self.network.config
        sizes = (1, config.num_key_value_heads, rows, config.head_dim)
        return KVCache(*sizes, self.dtype, self.device)

    def encode(
        self, cache: KVCache, context: DraftContext, start: int, stop: int, full: bool
    ) -> None:
        """Keys and values only; `full` also runs queries, attention, MLP and LM head."""
        taps = context.features(self.tap_layers, start, stop)
        pair, feature = self._pair(taps, context.tokens[start + 1 : stop + 1])
        positions = torch.arange(start, stop, device=self.device)
        if full:
            visible = all_before(len(pair), self.device) if len(pair) > 1 else None
            self._run(cache, pair, feature, positions, visible)
        else:
            attention = self.network.midlayer.self_attn
            cache.write(0, *attention.keys_values(pair, self.rotary.at(positions)))

    def first_step(
        self, cache: KVCache, context: DraftContext, lengths: Tensor, visible: Tensor | Paths | None
    ) -> tuple[Tensor, Tensor]:
        """Runs the position before each anchor, on its true feature."""
        newest = lengths - 2
        start, stop = int(newest[0]), int(newest[-1]) + 1
        positions = upload(newest, self.device)
        taps = context.features(self.tap_layers, start, stop)[positions - start]
        pair, feature = self._pair(taps, context.tokens[positions + 1])
        return self._run(cache, pair, feature, positions, visible)

    def next_step(
        self,
        cache: KVCache,
        tokens: Tensor,
        carried: Tensor,
        positions: Tensor,
        visible: Tensor | Paths | None,
    ) -> tuple[Tensor, Tensor]:
        """Runs drafted tokens, whose features are the head's own."""
        pair = self.network.midlayer.pair(F.embedding(tokens, self.embedding), carried)
        return self._run(cache, pair, carried, positions, visible)

    def _pair(self, taps: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Attention inputs `[m, 2d]` and features `[m, d]` of positions and their next tokens."""
        feature = self.network.fuse(taps)
        return self.network.midlayer.pair(F.embedding(following, self.embedding), feature), feature

    def _run(
        self,
        cache: KVCache,
        pair: Tensor,
        feature: Tensor,
        positions: Tensor,
        visible: Tensor | Paths | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits `[w, Vd]`, and the features `[w, d]` that the next step reads."""
        cos_sin = self.rotary.at(positions)
        out = self.network.midlayer.run(pair, feature, cos_sin, in_cache(cache, 0, visible))
        return self.network.logits(out).float(), self.network.carry(out)
