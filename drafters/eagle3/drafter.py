"""EAGLE-3 (arXiv 2503.01840): an autoregressive head on the target's own hidden states.

Notation for a position t: f_t = target taps, g_t = fused feature, e_t = embedding of the *next*
token x_{t+1}. The head reads (g_t, e_t) and predicts x_{t+2}; drafting goes on with its own output
in place of g. One decoder layer, so its keys and values depend on (g, e) alone: catching up needs
two projections and no attention (KV-only Prefill, WhiFlash section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftgym.decoding.drafting import MAX_TREE_NODES, DraftContext, DraftShape
from draftgym.decoding.model.cache import KVCache
from draftgym.decoding.model.layers import additive_mask, attend
from draftgym.decoding.model.weights import hash_tensors
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.verification import Candidates, Drafted
from draftgym.drafters.autoregressive import AutoregressiveDrafter
from draftgym.drafters.modules import DraftLayer, DraftNetwork, RMSNorm, rotary_table
from draftgym.drafters.tree import Frontier, children_per_node, grow_chain, grow_tree, scratch_rows
from draftgym.drafters.vocabulary import from_d2t


@dataclass(frozen=True)
class Eagle3Config:
    """Sizes and wiring of an EAGLE-3 head.

    Attributes:
        hidden_size: Width of the head, d.
        target_hidden_size: Width of the target's taps.
        intermediate_size: Width of the MLP.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads.
        head_dim: Size of a head.
        rms_norm_eps: Epsilon of the norms.
        vocab_size: Target vocabulary, V.
        draft_vocab_size: Rows of the head's own LM head, Vd.
        max_position_embeddings: Longest sequence it can draft for.
        rope_parameters: Rotary settings (`rope_theta`, scaling); must match the target's.
        tap_layers: 0-based target layers whose outputs are fused (three, in published heads).
        norm_before_residual: The layer's residual is the normed feature, not the feature itself.
        norm_before_fc: The concatenated taps are normed before they are fused.
        fc_norm: Each tap is normed before they are concatenated and fused.
        norm_output: The next step reads the normed output (EAGLE-3.1), not the output itself.
    """

    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    vocab_size: int
    draft_vocab_size: int
    max_position_embeddings: int
    rope_parameters: dict[str, Any]
    tap_layers: tuple[int, ...]
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False


def default_taps(target_layers: int) -> tuple[int, int, int]:
    """The published choice: outputs of layers 1, n // 2 - 1 and n - 4 (0-based)."""
    low, middle, high = 1, target_layers // 2 - 1, target_layers - 4
    return (low, max(middle, 0), max(high, 0))


class Eagle3Layer(DraftLayer):
    """The one decoder layer; its input is the pair (embedding, feature), twice as wide."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config, inputs=2 * config.hidden_size, query_key_norms=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_before_residual = config.norm_before_residual

    def pair(self, embedding: Tensor, feature: Tensor) -> Tensor:
        """The attention input `[..., 2d]`: normed embedding first, then normed feature."""
        return torch.cat([self.input_layernorm(embedding), self.hidden_norm(feature)], dim=-1)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Residuals and MLP after attention; the residual is the feature, normed or not."""
        if self.norm_before_residual:
            residual = self.hidden_norm(residual)
        return super().finish(residual, attended)


class Eagle3Network(DraftNetwork):
    """The head's weights under their native names (`fc`, `midlayer.*`, `norm`, `lm_head`, maps).

    Args:
        config: Sizes and wiring.
        draft_ids: Target ids of the draft vocabulary, ascending `[Vd]`; None for the first Vd.
        own_embedding: Whether the checkpoint brings an input embedding that is not the target's.
    """

    def __init__(
        self, config: Eagle3Config, draft_ids: Tensor | None = None, own_embedding: bool = False
    ) -> None:
        super().__init__(config, draft_ids, own_embedding)
        self.config = config
        width, eps = config.target_hidden_size, config.rms_norm_eps
        taps = len(config.tap_layers)
        self.fc = nn.Linear(taps * width, config.hidden_size, bias=False)
        if config.norm_before_fc:
            self.input_norm = RMSNorm(taps * width, eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(width, eps) for _ in range(taps))
        self.midlayer = Eagle3Layer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)

    def fuse(self, taps: Tensor) -> Tensor:
        """Features `[..., d]` of concatenated taps `[..., k * d_target]`."""
        config = self.config
        if config.norm_before_fc:
            taps = self.input_norm(taps)
        if config.fc_norm:
            each = taps.chunk(len(config.tap_layers), dim=-1)
            pairs = zip(self.fc_norm, each, strict=True)
            taps = torch.cat([norm(tap) for norm, tap in pairs], dim=-1)
        out: Tensor = self.fc(taps)
        return out

    def carry(self, out: Tensor) -> Tensor:
        """The feature `[..., d]` that the next draft step reads, of a layer output."""
        carried: Tensor = self.norm(out) if self.config.norm_output else out
        return carried

    def logits(self, out: Tensor) -> Tensor:
        """Draft-vocabulary logits `[..., Vd]` of a layer output."""
        result: Tensor = self.lm_head(self.norm(out))
        return result


@dataclass
class Eagle3State:
    """Keys and values of committed positions, all but the newest (which is redrafted in full)."""

    cache: KVCache


class Eagle3Drafter(AutoregressiveDrafter):
    """Drafts a chain one token per step, or a tree one level per step.

    Args:
        network: The trained head, in the target's dtype.
        embedding: The target's input embedding `[V, d]`, read where the head has none of its own.
        needs_target: Fingerprint of the target it was trained for, or None.
        name: How arms call it.
    """

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
        self.lag = 2
        self.max_draft_length = 16
        self.max_tree_nodes = MAX_TREE_NODES
        self.dtype = network.fc.weight.dtype
        self.draft_ids = from_d2t(network.d2t)
        limit = config.max_position_embeddings
        self.rotary = rotary_table(config.rope_parameters, config.head_dim, limit).to(self.dtype)

    @property
    def fingerprint(self) -> str:
        """Hash of the head's weights."""
        return hash_tensors(self.network.state_dict())

    def new_state(self, capacity: int) -> Eagle3State:
        """An empty one-layer cache, with room for a draft behind the committed positions."""
        config = self.network.config
        room = capacity + 1 + scratch_rows(self.max_draft_length)
        return Eagle3State(
            KVCache(1, config.num_key_value_heads, room, config.head_dim, self.dtype)
        )

    @torch.inference_mode()
    def catch_up(self, state: Eagle3State, context: DraftContext, full: bool = False) -> int:
        """Encodes positions up to `n - 3` in one batched call.

        Keys and values only; `full` also runs queries, attention, MLP and LM head on every position
        and throws the results away.
        """
        start, stop = state.cache.length, context.tokens.shape[0] - self.lag
        if stop <= start:
            return 0
        pair, feature = self._pair(context, start, stop)
        positions, missed = torch.arange(start, stop), stop - start
        if full:
            causal = torch.ones(missed, missed).tril().bool() if missed > 1 else None
            self.network.logits(self._step(state.cache, pair, feature, positions, causal))
        else:
            attention = self.network.midlayer.self_attn
            state.cache.write(0, *attention.keys_values(pair, self.rotary.at(positions)))
        state.cache.keep(missed)
        return missed

    def _chain(self, cache: KVCache, context: DraftContext, shape: DraftShape) -> Proposal:
        newest = context.tokens.shape[0] - 2
        pair, feature = self._pair(context, newest, newest + 1)
        position = newest

        def step(token: Tensor | None) -> Drafted:
            nonlocal pair, feature, position
            if token is not None:
                pair = self._drafted_pair(token, feature)
            out = self._step(cache, pair, feature, torch.tensor([position]))
            cache.keep(1)
            feature = self.network.carry(out)
            position += 1
            logits = self.network.logits(out).float()
            return context.rule.draft(logits, [position + 1], self.draft_ids)

        return grow_chain(shape.depth, step)

    def _tree(self, cache: KVCache, context: DraftContext, shape: DraftShape) -> Proposal:
        """The dynamic tree; a level is one step over the best nodes of the level above."""
        newest = context.tokens.shape[0] - 2
        children = children_per_node(shape.budget)
        pair, features = self._pair(context, newest, newest + 1)

        def step(pair: Tensor, feature: Tensor, depth: int, visible: Tensor | None) -> Candidates:
            nonlocal features
            out = self._step(cache, pair, feature, torch.tensor([newest + depth]), visible)
            cache.keep(len(out))
            features = self.network.carry(out)
            positions = [newest + depth + 2] * len(out)
            logits = self.network.logits(out).float()
            return context.rule.candidates(logits, positions, children, self.draft_ids)

        def expand(frontier: Frontier) -> Candidates:
            feature = features[frontier.parents]
            pair = self._drafted_pair(frontier.tokens, feature)
            return step(pair, feature, frontier.depth, frontier.visible)

        return grow_tree(shape, step(pair, features, 0, None), expand)

    def _drafted_pair(self, tokens: Tensor, feature: Tensor) -> Tensor:
        """Attention inputs `[w, 2d]` of drafted tokens, whose features are the head's own."""
        return self.network.midlayer.pair(F.embedding(tokens, self.embedding), feature)

    def _pair(self, context: DraftContext, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Attention inputs `[m, 2d]` and features `[m, d]` of committed positions."""
        feature = self.network.fuse(context.features(self.tap_layers, start, stop))
        embedding = F.embedding(context.tokens[start + 1 : stop + 1], self.embedding)
        return self.network.midlayer.pair(embedding, feature), feature

    def _step(
        self,
        cache: KVCache,
        pair: Tensor,
        feature: Tensor,
        positions: Tensor,
        visible: Tensor | None = None,
    ) -> Tensor:
        """The layer's output `[w, d]` for rows at `positions` `[w]`, or `[1]` for a shared one.

        They see every key, or of the newest keys those that `visible` `[w, r]` allows.
        """
        layer = self.network.midlayer
        cos_sin = self.rotary.at(positions)
        keys, values = cache.write(0, *layer.self_attn.keys_values(pair, cos_sin))
        mask = None if visible is None else additive_mask(visible, keys.shape[1], self.dtype)
        attended = attend(layer.self_attn.queries(pair, cos_sin), keys, values, mask)
        return layer.finish(feature, attended)
