"""What drafts of sampled texts carry beside token ids: truncated, quantised distributions.

Multi-SPIN's payload (arXiv 2606.04581, eq. 9): for every drafted token the largest draft
probabilities with their token ids, enough for the textbook `rejection` rule. The device samples
from the very numbers that it sends, so truncating and quantising changes what is accepted and
never the law of the text. Token ids alone are enough for `greedy` and `coupled`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.model.device import to_host
from draftgym.decoding.verify.base import Drafted, VerificationRule, check_draft, chosen_tokens
from draftgym.decoding.verify.rejection import RejectionRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.seeds import derived_seed
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.protocol import Refused

MODES = {"tokens": wire.TOKENS, "truncated": wire.TRUNCATED}
"""Payloads by their names in `draftgym.envs.radio.payload`."""
WHOLE = 2**16 - 1
"""What the weights of a distribution add up to, but for rounding."""


class TruncatedRule(RejectionRule):
    """Samples drafts from a few quantised probabilities; their weights are the `draft_probs`.

    Args:
        temperature: Above 0.
        seed: Of what is sampled.
        vocab_size: Size of the target's vocabulary.
        kept: Probabilities of a distribution at most.
    """

    def __init__(self, temperature: float, seed: int, vocab_size: int, kept: int) -> None:
        super().__init__(temperature, seed, vocab_size)
        self.kept = kept

    def draft(
        self, logits: Tensor, positions: Sequence[int], vocab: Tensor | None = None
    ) -> Drafted:
        """Samples in proportion to `quantised` weights; see `VerificationRule.draft`."""
        check_draft(logits, vocab, self.vocab_size)
        weights = quantised((logits.float() / self.temperature).softmax(-1), self.kept)
        rows = torch.tensor([self.coins.pick(row) for row in to_host(weights)], dtype=torch.long)
        full = weights.new_zeros(len(weights), self.vocab_size)
        if vocab is None:
            full[:, : weights.shape[1]] = weights
        else:
            full[:, vocab.to(full.device)] = weights
        return *chosen_tokens(logits, rows.to(logits.device), vocab), full


def quantised(probs: Tensor, kept: int) -> Tensor:
    """The `kept` largest probabilities of each row as whole weights that add up to about `WHOLE`.

    Args:
        probs: Rows of distributions `[n, v]`.
        kept: How many are kept at most.

    Returns:
        Weights `[n, v]`, 0 for all others.
    """
    top = probs.topk(min(kept, probs.shape[-1]), dim=-1)
    shares = top.values / top.values.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, top.indices, (WHOLE * shares).round())


def device_rule(opened: Any, temperature: float, seed: int, position: int) -> VerificationRule:
    """How a device drafts.

    Args:
        opened: What the server said.
        temperature: 0 for greedy.
        seed: Of the text.
        position: Tokens that the device has; it samples anew from there on.
    """
    if temperature and opened.payload == wire.TRUNCATED:
        own = derived_seed(seed, "device", position)
        return TruncatedRule(temperature, own, opened.vocab_size, opened.kept)
    return make_rule(None, temperature, seed, opened.vocab_size)


def server_rule(
    mode: str, temperature: float, seed: int, position: int, vocab_size: int
) -> VerificationRule:
    """How a server verifies; see `device_rule`."""
    if temperature and mode == "truncated":
        own = derived_seed(seed, "server", position)
        return make_rule("rejection", temperature, own, vocab_size)
    return make_rule(None, temperature, seed, vocab_size)


def packed(draft_probs: Tensor | None) -> list[Any]:
    """Distributions as messages; none where tokens were not sampled."""
    if draft_probs is None:
        return []
    found = []
    for row in to_host(draft_probs).numpy():
        ids = np.flatnonzero(row)
        numbers = ids.astype(_ids(len(row))).tobytes(), row[ids].astype("<u2").tobytes()
        found.append(wire.Distribution(ids=numbers[0], weights=numbers[1]))
    return found


def unpacked(
    distributions: Sequence[Any], tokens: Sequence[int], vocab_size: int, kept: int
) -> Tensor | None:
    """The weights that tokens were sampled by `[n, vocab]`; None where they were not sampled.

    Args:
        distributions: From `packed`.
        tokens: The tokens, below `vocab_size`.
        vocab_size: Size of the target's vocabulary.
        kept: Probabilities of a distribution at most.

    Raises:
        Refused: They are no distributions, or not these tokens'.
    """
    if not distributions:
        return None
    if len(distributions) != len(tokens):
        raise Refused("INVALID_ARGUMENT", "as many distributions as tokens, or none")
    full = np.zeros((len(tokens), vocab_size), np.float32)
    for row, one, token in zip(full, distributions, tokens, strict=True):
        ids, weights = _numbers(one.ids, _ids(vocab_size)), _numbers(one.weights, "<u2")
        fits = 0 < len(ids) == len(weights) <= kept
        if not (fits and (np.diff(ids) > 0).all() and ids[-1] < vocab_size and weights.all()):
            raise Refused("INVALID_ARGUMENT", "what should be a distribution is none")
        row[ids] = weights
        if not row[token]:
            raise Refused("INVALID_ARGUMENT", "a token that its own distribution excludes")
    return torch.from_numpy(full)


def _ids(vocab_size: int) -> str:
    return "<u2" if vocab_size <= 2**16 else "<u4"


def _numbers(read: bytes, kind: str) -> NDArray[np.int64]:
    size = np.dtype(kind).itemsize
    return np.frombuffer(read[: len(read) // size * size], kind).astype(np.int64)
