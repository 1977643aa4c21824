"""The reduced draft vocabulary: which target tokens a drafter can propose.

Published checkpoints store it as `d2t` (offsets: target id = i + d2t[i], int64 `[Vd]`) and `t2d`
(which target ids are covered, bool `[V]`). Restricting a drafter never changes the text: a token it
cannot propose is simply never accepted from it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def most_frequent(counts: Tensor, size: int) -> Tensor:
    """Target ids of the `size` most frequent tokens, ascending `[size]`.

    Args:
        counts: Occurrences of every target token, `[V]`.
        size: Size of the draft vocabulary.
    """
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def to_maps(ids: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """The stored form (`d2t`, `t2d`) of ascending target ids."""
    covered = torch.zeros(vocab, dtype=torch.bool, device=ids.device)
    covered[ids] = True
    return ids - torch.arange(ids.shape[0], device=ids.device), covered


def from_d2t(d2t: Tensor) -> Tensor:
    """Target ids of the draft vocabulary, ascending `[Vd]`."""
    return d2t + torch.arange(d2t.shape[0], device=d2t.device)


def draft_labels(ids: Tensor, vocab: int) -> Tensor:
    """Maps a target id to its row in the draft vocabulary, `[V]`; -1 where it is not covered."""
    rows = torch.full((vocab,), -1, dtype=torch.long, device=ids.device)
    rows[ids] = torch.arange(ids.shape[0], device=ids.device)
    return rows
