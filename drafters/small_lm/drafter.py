"""The small LM: a language model of its own that drafts without any of the target's states.

It reads token ids alone, so it runs where the target is not: on a device that sends its drafts over
a network. Any causal LM with the target's vocabulary serves. Its pass is the target's own kind of
pass (`draftgym.decoding.model.compact.transformer`), with a key/value cache of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.drafting import (
    MAX_TREE_NODES,
    DraftContext,
)
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.compact.compiled.passes import CompiledPass
from draftgym.decoding.model.compact.transformer import Decoder
from draftgym.decoding.model.device import upload
from draftgym.decoding.model.fingerprint import fingerprint, hash_facts, hash_tensors
from draftgym.decoding.model.interface import NewRows
from draftgym.drafters.autoregressive import AutoregressiveDrafter
from draftgym.drafters.positions.paths import Paths
from draftgym.drafters.tree import scratch_rows


class SmallLMDrafter(AutoregressiveDrafter):
    """Drafts a chain one token per step, or a tree one level per step.

    The state covers all committed positions but the newest, which is drafted from in full. Its
    rotary tables reach as far as the target's.

    Args:
        decoder: The small LM, in the target's dtype.
        name: How arms call it.
        rope_parameters: Rotary settings of its config; they are part of its fingerprint.
        draft_ids: Target ids of the rows of its head, ascending `[Vd]`; None where these are the
            target's tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        name: str = "small",
        rope_parameters: Mapping[str, Any] | None = None,
        draft_ids: Tensor | None = None,
    ) -> None:
        self.name = name
        self.decoder = decoder
        self.rope_parameters = dict(rope_parameters or {})
        self.draft_ids = draft_ids
        self.max_draft_length = 16
        self.max_tree_nodes = MAX_TREE_NODES
        self.draft_rows = 1 + scratch_rows(self.max_draft_length)

    @property
    def fingerprint(self) -> str:
        """Hash of the small LM's weights, and of which tokens it drafts."""
        whole = fingerprint(self.decoder, self.rope_parameters)
        if self.draft_ids is None:
            return whole
        return hash_facts({"decoder": whole}, hash_tensors({"draft_ids": self.draft_ids}))

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the small LM's weights lie."""
        return self.decoder.device

    @property
    def compiled(self) -> CompiledPass | None:  # type: ignore[override]
        """Runs passes over few rows of the small LM; None for torch."""
        return self.decoder.compiled

    def new_cache(self, rows: int) -> KVCache:
        """A cache of all layers."""
        return self.decoder.new_cache(rows)

    def encode(
        self, cache: KVCache, context: DraftContext, start: int, stop: int, full: bool
    ) -> None:
        """Keys and values of a layer need all of the layers below it.

        So KV-only can leave out no more than the last layer's attention and MLP and the LM head;
        `full` runs them on every position.
        """
        rows = NewRows(cache, context.tokens[start:stop])
        if full:
            self.decoder.forward([rows])
        else:
            self.decoder.encode(rows)

    def first_step(
        self, cache: KVCache, context: DraftContext, lengths: Tensor, visible: Tensor | Paths | None
    ) -> tuple[Tensor, Tensor]:
        """Runs each anchor."""
        positions = upload(lengths - 1, self.device)
        anchors = context.tokens[positions]
        return self.next_step(cache, anchors, anchors, positions, visible)

    def next_step(
        self,
        cache: KVCache,
        tokens: Tensor,
        carried: Tensor,
        positions: Tensor,
        visible: Tensor | Paths | None,
    ) -> tuple[Tensor, Tensor]:
        """Runs tokens; beside the tokens themselves, nothing is carried from step to step."""
        # Of places that take a step together, one may need fewer; what it runs past is cut away.
        positions = positions.clamp(max=len(self.decoder.rotary) - 1)
        if isinstance(visible, Paths):
            visible = visible.mask(cache.length + len(tokens))
        rows = NewRows(cache, tokens, positions, visible)
        return self.decoder.forward([rows])[0].logits, tokens
