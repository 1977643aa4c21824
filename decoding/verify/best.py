"""The best few of many scores, row by row, faster than a selection among all of them.

What is among the best of a row is in one of the groups with the best tops, so one fast maximum per
group comes first, and only these groups are looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 4096
"""Scores in a row from which groups pay."""


def best_scores(scores: Tensor, count: int) -> Tensor:
    """The highest scores of each row, best first: `[n, count]` of `[n, m]`, as `topk` gives."""
    groups = _groups(scores)
    if groups is None or count >= groups.shape[1]:
        return scores.topk(count).values
    chosen = groups.amax(-1).topk(count).indices
    return _of_groups(groups, chosen).topk(count).values


def best_places(scores: Tensor, count: int) -> Tensor:
    """Where the best scores of each row are, best first: `[n, min(count, m)]` of `[n, m]`.

    The first is the argmax: of equal scores the first in the row.
    """
    count, groups = min(count, scores.shape[-1]), _groups(scores)
    if groups is None or count >= groups.shape[1]:
        first = scores.argmax(-1, keepdim=True)
        rows = scores.topk(count).indices
    else:
        tops, size = groups.amax(-1), groups.shape[2]
        lead = tops.argmax(-1, keepdim=True)
        first = lead * size + _of_groups(groups, lead).argmax(-1, keepdim=True)
        chosen = tops.topk(count).indices
        at = _of_groups(groups, chosen).topk(count).indices
        rows = chosen.gather(1, at // size) * size + at % size
    # Of equal scores, argmax and topk may take different ones first; argmax decides.
    return torch.cat([first, rows.where(rows != first, rows[:, :1])[:, 1:]], dim=1)


def _groups(scores: Tensor) -> Tensor | None:
    """The scores as `[n, groups, size]`, if it pays."""
    count = scores.shape[-1]
    size = 1 << (count.bit_length() // 2)
    if scores.device.type != "cpu" or count < FEWEST or count % size:
        return None
    return scores.view(len(scores), -1, size)


def _of_groups(groups: Tensor, chosen: Tensor) -> Tensor:
    """The scores of some groups of each row, `[n, chosen * size]`."""
    return groups.gather(1, chosen[..., None].expand(-1, -1, groups.shape[2])).flatten(1)
