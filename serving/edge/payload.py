"""What drafts of sampled texts carry beside token ids, as messages.

* `truncated`, Multi-SPIN's payload (arXiv 2606.04581, eq. 9): for every drafted token the largest
  draft probabilities with their token ids.
* `scalar` (arXiv 2608.29618, Observation 1): each token's own probability, and the distribution of
  a rejected one when the server asks for it.

Both are enough for the textbook `rejection` rule (`draftgym.serving.edge.rules`); token ids alone
are for `greedy` and `coupled`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.model.device import to_host
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.protocol import LONGEST_NAME, Limits, Refused

MODES = {"tokens": wire.TOKENS, "truncated": wire.TRUNCATED, "scalar": wire.SCALAR}
"""Payloads by their names in `draftgym.envs.radio.payload`."""
WHOLE = 2**16 - 1
"""What the weights of a distribution add up to, but for rounding."""


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


def chances_of(draft_probs: Tensor, tokens: Sequence[int]) -> list[float]:
    """The probability of each token in its own distribution, as float32 has it.

    Args:
        draft_probs: Weights `[n, vocab]`.
        tokens: One of each row.
    """
    rows = draft_probs.double()
    own = rows[range(len(tokens)), list(tokens)] / rows.sum(-1)
    return own.float().tolist()


def check_chances(chances: Sequence[float], tokens: Sequence[int]) -> list[float] | None:
    """What a draft says of its tokens; None where they were not sampled.

    Raises:
        Refused: They are no probabilities, or not of these tokens.
    """
    if not chances:
        return None
    if len(chances) != len(tokens) or not all(0 < one <= 1 for one in chances):
        raise Refused("INVALID_ARGUMENT", "what should be probabilities are none")
    return list(chances)


def largest_message(
    limits: Limits, vocab_size: int, longest: int, distributions: int, kept: int
) -> int:
    """Bytes of the largest message of a device that keeps to what a server asks for.

    Args:
        limits: What devices may do.
        vocab_size: Size of the target's vocabulary.
        longest: Longest draft.
        distributions: Distributions that a message carries at most.
        kept: Probabilities of each at most.
    """
    token, report = vocab_size - 1, wire.Report(snr_db=1.0, token_seconds=1.0)
    name = "\N{GRINNING FACE}" * LONGEST_NAME  # four bytes each
    opening = wire.Open(
        session=name,
        prompt=[token] * limits.prompt_tokens,
        written=[token] * limits.new_tokens,
        max_new_tokens=limits.new_tokens,
        temperature=1.0,
        seed=2**64 - 1,
        drafter=name,
        drafter_fingerprint=name,
        tokenizer=name,
        category=name,
        report=report,
    )
    ids = bytes(np.dtype(_ids(vocab_size)).itemsize * kept)
    one = wire.Distribution(ids=ids, weights=bytes(2 * kept))
    draft = wire.Draft(
        position=limits.new_tokens,
        tokens=[token] * longest,
        report=report,
        distributions=[one] * distributions,
        chances=[1.0] * longest,
    )
    said = wire.FromDevice(open=opening), wire.FromDevice(draft=draft)
    return max(int(one.ByteSize()) for one in said)


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
