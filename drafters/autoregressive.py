"""What drafters share that write one token (or one level of a tree) per step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape
from draftgym.decoding.model.cache import KVCache
from draftgym.decoding.verify.proposal import Proposal


class AutoregressiveDrafter(Drafter):
    """Drafts behind its own cache and forgets what it drafted; its state has a `cache`."""

    @torch.inference_mode()
    def propose(self, state: Any, context: DraftContext, shape: DraftShape) -> Proposal:
        """Runs the newest position, then what was drafted; see `Drafter.propose`."""
        committed = state.cache.length
        draft = self._tree if shape.is_tree else self._chain
        proposal = draft(state.cache, context, shape)
        state.cache.roll_back(committed)  # committed positions are encoded anew, from true inputs
        return proposal

    @abstractmethod
    def _chain(self, cache: KVCache, context: DraftContext, shape: DraftShape) -> Proposal:
        """A chain; its rows may stay in the cache."""

    @abstractmethod
    def _tree(self, cache: KVCache, context: DraftContext, shape: DraftShape) -> Proposal:
        """A tree; its rows may stay in the cache."""
