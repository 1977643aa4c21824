"""How texts with a temperature are drafted on devices and verified by the server, by payload.

With `tokens` both sides draw the same noise (`coupled`). With `truncated` and `scalar` the textbook
`rejection` rule holds: the device samples from the very numbers that it sends, so truncating and
quantising changes what is accepted and never the law of the text. Coins depend on seed and position
alone: a round that is played again, because a connection broke in it, comes out as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from draftgym.decoding.model.device import to_host
from draftgym.decoding.verify.base import (
    Drafted,
    Verdict,
    VerificationRule,
    check_draft,
    check_rows,
    chosen_tokens,
)
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rejection import Coins, RejectionRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.seeds import derived_seed
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.payload import quantised


class DeviceRule(RejectionRule):
    """Samples drafts from a few quantised probabilities; their weights are the `draft_probs`.

    Args:
        temperature: Above 0.
        seed: Of the text.
        vocab_size: Size of the target's vocabulary.
        kept: Probabilities of a distribution at most.
    """

    def __init__(self, temperature: float, seed: int, vocab_size: int, kept: int) -> None:
        super().__init__(temperature, seed, vocab_size)
        self._seed, self.kept = seed, kept

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Samples in proportion to `quantised` weights; see `VerificationRule.draft`."""
        check_draft(logits, vocab, self.vocab_size)
        weights = quantised((logits.float() / self.temperature).softmax(-1), self.kept)
        picked = [
            Coins(derived_seed(self._seed, "device", position)).pick(row)
            for position, row in zip(positions, to_host(weights), strict=True)
        ]
        rows = torch.tensor(picked, dtype=torch.long)
        full = weights.new_zeros(len(weights), self.vocab_size)
        if vocab is None:
            full[:, : weights.shape[1]] = weights
        else:
            full[:, vocab.to(full.device)] = weights
        return *chosen_tokens(logits, rows.to(logits.device), vocab), full


class ServerRule(RejectionRule):
    """Verifies by whole distributions (`truncated`); arguments as `RejectionRule`."""

    def __init__(self, temperature: float, seed: int, vocab_size: int) -> None:
        super().__init__(temperature, seed, vocab_size)
        self._seed = seed

    def decide(
        self, proposal: Proposal, position: int, with_margins: bool, *seen: Tensor
    ) -> Verdict:
        """See `VerificationRule.decide`."""
        self.coins = Coins(derived_seed(self._seed, "server", position))
        return super().decide(proposal, position, with_margins, *seen)


class ScalarRule(ServerRule):
    """Accepts by the tokens' own probabilities alone (2608.29618, Observation 1).

    They are the proposal's `logprobs`; 1 of a token that was not sampled. What to write instead of
    a rejected token depends on its whole distribution: until `settle` is told, the verdict's
    `next_token` is none of the target's.
    """

    UNSETTLED = -1

    def look(
        self, proposal: Proposal, logits: Tensor, position: int, with_margins: bool
    ) -> tuple[Tensor, ...]:
        """All rows and the chances; see `VerificationRule.look`."""
        check_rows(proposal, logits, self.vocab_size)
        return logits, proposal.logprobs.exp()

    def decide(
        self, proposal: Proposal, position: int, with_margins: bool, *seen: Tensor
    ) -> Verdict:
        """Accepts token by token; see `VerificationRule.decide`."""
        self.coins = Coins(derived_seed(self._seed, "server", position))
        logits, chances = seen
        path: list[int] = []
        for node, (token, chance) in enumerate(
            zip(proposal.token_ids, chances.tolist(), strict=True)
        ):
            self._rejected = self._probs(logits[node])
            if not self.coins.accept(float(self._rejected[token]), chance):
                break
            path.append(node)
        else:
            return self._verdict(path, self.coins.pick(self._probs(logits[-1])), with_margins)
        if chance < 1:
            return self._verdict(path, self.UNSETTLED, with_margins)
        alone = torch.zeros_like(self._rejected)
        alone[token] = 1
        return self._verdict(path, self.settle(alone), with_margins)

    def settle(self, weights: Tensor) -> int:
        """What is written instead of the rejected token.

        Args:
            weights: What it was sampled in proportion to `[vocab]`.
        """
        p, q = self._rejected, weights.double()
        residual = (p - q / q.sum()).clamp_(min=0)
        return self.coins.pick(residual if residual.sum() > 0 else p)

    def _verdict(self, path: list[int], token: int, with_margins: bool) -> Verdict:
        return Verdict(path, token, [math.nan] * (len(path) + 1) if with_margins else [])


def device_rule(opened: Any, temperature: float, seed: int) -> VerificationRule:
    """How a device drafts.

    Args:
        opened: What the server said.
        temperature: 0 for greedy.
        seed: Of the text.
    """
    if temperature and opened.payload != wire.TOKENS:
        return DeviceRule(temperature, seed, opened.vocab_size, opened.kept)
    return make_rule(None, temperature, seed, opened.vocab_size)


def server_rule(payload: str, temperature: float, seed: int, vocab_size: int) -> VerificationRule:
    """How a server verifies what such a device drafts."""
    if not temperature or payload == "tokens":
        return make_rule(None, temperature, seed, vocab_size)
    return {"truncated": ServerRule, "scalar": ScalarRule}[payload](temperature, seed, vocab_size)
