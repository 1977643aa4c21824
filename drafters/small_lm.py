"""The small LM: a language model of its own that drafts without any of the target's states.

It reads token ids alone, so it runs where the target is not: on a device that sends its drafts over
a network. Any causal LM with the target's vocabulary serves. Its pass is the target's own kind of
pass (`decoding.transformer`), with a key/value cache of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decoding.cache import KVCache
from decoding.drafting import DraftContext, Drafter
from decoding.proposal import Proposal
from decoding.transformer import Decoder, NewRows


@dataclass
class SmallLMState:
    """Keys and values of committed positions, all but the newest (which is redrafted in full)."""

    cache: KVCache


class SmallLMDrafter(Drafter):
    """Drafts a chain, one token per step.

    Args:
        decoder: The small LM, in the target's dtype.
        name: How arms call it.
    """

    def __init__(self, decoder: Decoder, name: str = "small") -> None:
        self.name = name
        self.decoder = decoder
        self.max_draft_length = 16

    def new_state(self, capacity: int) -> SmallLMState:
        """An empty cache, with room for a draft behind the committed positions."""
        return SmallLMState(self.decoder.new_cache(capacity + self.max_draft_length))

    @torch.inference_mode()
    def catch_up(self, state: SmallLMState, context: DraftContext) -> int:
        """Encodes positions up to `n - 2` in one batched call, without logits."""
        start, stop = state.cache.length, context.tokens.shape[0] - 1
        if stop <= start:
            return 0
        rows = NewRows(state.cache, context.tokens[start:stop], logits_from=stop - start - 1)
        self.decoder.forward([rows], (), with_logits=False)
        state.cache.keep(stop - start)
        return stop - start

    @torch.inference_mode()
    def propose(self, state: SmallLMState, context: DraftContext, length: int) -> Proposal:
        """Runs the newest position, then one row for each token."""
        cache, committed = state.cache, state.cache.length
        token = context.tokens[-1:]
        tokens, logprobs, probs = [], [], []
        for step in range(1, length + 1):
            logits = self.decoder.forward([NewRows(cache, token)], ())[0].logits
            cache.keep(1)
            token, logprob, prob = context.rule.draft(logits, [committed + step], None)
            tokens.append(token)
            logprobs.append(logprob)
            probs.append(prob)
        cache.roll_back(committed)
        drawn = [prob for prob in probs if prob is not None]
        return Proposal.chain(
            torch.cat(tokens), torch.cat(logprobs), torch.cat(drawn) if drawn else None
        )
