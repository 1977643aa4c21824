"""Log-probabilities of tokens that were written or read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from draftgym.decoding.model.device import read_together, upload
from draftgym.serving.batching.requests import TokenLogprob


def token_logprobs(logits: Tensor, tokens: Tensor, top: int) -> list[TokenLogprob]:
    """How likely tokens are.

    Args:
        logits: The target's, that each was chosen from `[n, vocab]`.
        tokens: Their ids `[n]`, on the host.
        top: How many of the likeliest tokens are told beside each.
    """
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(-1, upload(tokens, logits.device)[:, None])[:, 0]
    best = logprobs.topk(min(top, logits.shape[-1]), dim=-1)
    own, values, indices = read_together([chosen, best.values, best.indices])
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    alternatives = [tuple(zip(*pair, strict=True)) for pair in pairs]
    told = zip(tokens.tolist(), own.tolist(), alternatives, strict=True)
    return [TokenLogprob(*one) for one in told]


def rows_of_committed(path: Sequence[int], count: int) -> list[int]:
    """Rows of a pass's logits that `count` committed tokens were chosen from, by accepted nodes."""
    return [0, *(node + 1 for node in path)][:count]
