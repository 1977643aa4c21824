"""Rejection verification, the textbook rule for sampled drafts: min(1, p / q) and the residual.

Notation: p is the target's distribution, q the one a drafted token was sampled from, both at the
rule's temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.device import read_together, upload
from draftgym.decoding.verify.base import (
    Drafted,
    Verdict,
    VerificationRule,
    check_draft,
    check_finite,
    check_rows,
    children_by_edge,
    chosen_tokens,
)
from draftgym.decoding.verify.proposal import Proposal


class Coins:
    """The random decisions of rejection sampling.

    Args:
        seed: Any integer.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=seed & ((1 << 128) - 1)))

    def accept(self, mass: float, out_of: float) -> bool:
        """True with probability min(1, mass / out_of).

        The product avoids 0 / 0, and the strict comparison never accepts a token without mass.
        """
        return float(self._generator.random()) * out_of < mass

    def pick(self, weights: Tensor) -> int:
        """Index drawn in proportion to `weights`, shape `[vocab]`, non-negative, sum above 0."""
        sums = weights.double().cumsum(0)
        drawn = sums[-1] * float(self._generator.random())
        return int(torch.searchsorted(sums, drawn, right=True))


class RejectionRule(VerificationRule):
    """The textbook rule: accept with min(1, p / q), else sample from the residual.

    Deterministic proposals (no `draft_probs`: argmax or n-gram chains, top-k trees) are accepted
    child by child with the probability that the target gives them. Its texts have plain sampling's
    law but, unlike the coupled rule's, depend on what was proposed.

    Args:
        temperature: Above 0; applies to draft and target.
        seed: Seed of the coins.
        vocab_size: Size of the target's vocabulary (width of its logits).
        coins: Source of the random decisions instead of the seeded one.
    """

    name = "rejection"

    def __init__(
        self, temperature: float, seed: int, vocab_size: int, coins: Coins | None = None
    ) -> None:
        self.temperature = temperature
        self.vocab_size = vocab_size
        self.coins = coins if coins is not None else Coins(seed)

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Samples from softmax(logits / T); see `VerificationRule.draft`."""
        check_draft(logits, vocab, self.vocab_size)
        # In float32 from here on: verification must divide by the very numbers sampled from.
        probs = (self.narrowed(logits).float() / self.temperature).softmax(-1)
        top, shares = read_together([logits.amax(-1), probs])  # coins are thrown on the host
        check_finite(float(top.max()) if len(top) else 0.0, "drafter")
        rows = [self.coins.pick(row) for row in shares]
        ids = upload(torch.tensor(rows, dtype=torch.long), logits.device)
        full = probs.new_zeros(probs.shape[0], self.vocab_size)
        if vocab is None:
            full[:, : probs.shape[1]] = probs
        else:
            full[:, vocab.to(full.device)] = probs
        return *chosen_tokens(logits, ids, vocab), full

    def ranking(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Tensor:
        """Logits / T, as a child is accepted with its share of softmax(target's logits / T)."""
        check_draft(logits, vocab, self.vocab_size)
        return logits.float() / self.temperature

    def look(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool
    ) -> tuple[Tensor, ...]:
        """All rows, as coins are thrown on the host, in float64; see `VerificationRule.look`."""
        check_rows(proposal, logits, self.vocab_size)
        return (logits,) if proposal.draft_probs is None else (logits, proposal.draft_probs)

    def decide(
        self, proposal: Proposal, position: int, with_margins: bool, *seen: Tensor
    ) -> Verdict:
        """Accepts or rejects child by child; see `VerificationRule.decide`.

        Raises:
            DraftgymError: Also if a sampled proposal branches.
        """
        logits, *draft_probs = seen
        if not draft_probs:
            path, next_token = self._verify_tree(proposal, logits)
        else:
            path, next_token = self._verify_chain(proposal, draft_probs[0], logits)
        return Verdict(path, next_token, [math.nan] * (len(path) + 1) if with_margins else [])

    def _verify_chain(
        self, proposal: Proposal, draft_probs: Tensor, logits: Tensor
    ) -> tuple[list[int], int]:
        """Sampled chain: node i was drawn from `draft_probs[i]`."""
        if not proposal.is_chain:
            raise DraftgymError(
                "rejection verification got a tree of sampled tokens",
                "draft a chain, draft the tree by top-k (no draft_probs), or use the coupled rule",
            )
        for node, token in enumerate(proposal.token_ids):
            p = self._probs(logits[node])
            q = draft_probs[node].double()
            q = q / q.sum()
            if not self.coins.accept(float(p[token]), float(q[token])):
                residual = (p - q).clamp_(min=0)
                return list(range(node)), self.coins.pick(residual if residual.sum() > 0 else p)
        return list(range(len(proposal))), self.coins.pick(self._probs(logits[-1]))

    def _verify_tree(self, proposal: Proposal, logits: Tensor) -> tuple[list[int], int]:
        """Deterministic tree: each child in turn is accepted with its share of what is left."""
        children: dict[int, dict[int, int]] = {}
        for (parent, token), node in children_by_edge(proposal).items():
            children.setdefault(parent, {})[token] = node
        path: list[int] = []
        while True:
            parent = path[-1] if path else -1
            p = self._probs(logits[parent + 1])
            residual = p.clone()
            for token, node in children.get(parent, {}).items():
                if self.coins.accept(float(residual[token]), float(residual.sum())):
                    path.append(node)
                    break
                residual[token] = 0.0
            else:
                return path, self.coins.pick(residual if residual.sum() > 0 else p)

    def _probs(self, row: Tensor) -> Tensor:
        """softmax(row / T) in float64, shape `[vocab]`."""
        row = row.float()
        check_finite(float(row.max()))
        return (row.double() / self.temperature).softmax(-1)
