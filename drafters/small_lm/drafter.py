"""The small LM: a language model of its own that drafts without any of the target's states.

It reads token ids alone, so it runs where the target is not: on a device that sends its drafts over
a network. Any causal LM with the target's vocabulary serves. Its pass is the target's own kind of
pass (`draftgym.decoding.model.transformer`), with a key/value cache of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draftgym.decoding.drafting import MAX_TREE_NODES, DraftContext, DraftShape
from draftgym.decoding.model.cache import KVCache
from draftgym.decoding.model.transformer import Decoder, NewRows
from draftgym.decoding.model.weights import fingerprint
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.verification import Candidates, Drafted
from draftgym.drafters.autoregressive import AutoregressiveDrafter
from draftgym.drafters.tree import Frontier, children_per_node, grow_chain, grow_tree, scratch_rows


@dataclass
class SmallLMState:
    """Keys and values of committed positions, all but the newest (which is redrafted in full)."""

    cache: KVCache


class SmallLMDrafter(AutoregressiveDrafter):
    """Drafts a chain one token per step, or a tree one level per step.

    Args:
        decoder: The small LM, in the target's dtype.
        name: How arms call it.
    """

    def __init__(self, decoder: Decoder, name: str = "small") -> None:
        self.name = name
        self.decoder = decoder
        self.max_draft_length = 16
        self.max_tree_nodes = MAX_TREE_NODES

    @property
    def fingerprint(self) -> str:
        """Hash of the small LM's weights."""
        return fingerprint(self.decoder)

    def new_state(self, capacity: int) -> SmallLMState:
        """An empty cache, with room for a draft behind the committed positions."""
        room = capacity + 1 + scratch_rows(self.max_draft_length)
        return SmallLMState(self.decoder.new_cache(room))

    @torch.inference_mode()
    def catch_up(self, state: SmallLMState, context: DraftContext, full: bool = False) -> int:
        """Encodes positions up to `n - 2` in one batched call.

        Keys and values of a layer need all of the layers below it, so KV-only can leave out no more
        than the last layer's attention and MLP and the LM head; `full` runs them on every position.
        """
        start, stop = state.cache.length, context.tokens.shape[0] - 1
        if stop <= start:
            return 0
        rows = NewRows(state.cache, context.tokens[start:stop])
        if full:
            self.decoder.forward([rows])
        else:
            self.decoder.encode(rows)
        state.cache.keep(stop - start)
        return stop - start

    def _chain(self, cache: KVCache, context: DraftContext, shape: DraftShape) -> Proposal:
        def step(token: Tensor | None) -> Drafted:
            row = context.tokens[-1:] if token is None else token
            logits = self._run(NewRows(cache, row))
            return context.rule.draft(logits, [cache.length])

        return grow_chain(shape.depth, step)

    def _tree(self, cache: KVCache, context: DraftContext, shape: DraftShape) -> Proposal:
        children, anchor = children_per_node(shape.budget), cache.length

        def step(rows: NewRows, depth: int) -> Candidates:
            logits = self._run(rows)
            return context.rule.candidates(logits, [anchor + depth + 1] * len(logits), children)

        def expand(frontier: Frontier) -> Candidates:
            positions = torch.full_like(frontier.tokens, anchor + frontier.depth)
            rows = NewRows(cache, frontier.tokens, positions, frontier.visible)
            return step(rows, frontier.depth)

        return grow_tree(shape, step(NewRows(cache, context.tokens[-1:]), 0), expand)

    def _run(self, rows: NewRows) -> Tensor:
        """Logits `[n, V]` of new rows, which stay in the cache."""
        logits = self.decoder.forward([rows], ())[0].logits
        rows.cache.keep(len(logits))
        return logits
