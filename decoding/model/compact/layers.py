"""The arithmetic that the target and the neural drafters share.

Notation: N = rows (tokens) of this call, L = keys visible to them, H = query heads,
G = key/value heads, D = head dimension, d = hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last axis."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


class RotaryTable:
    """Cosines and sines of rotary position embedding, one row per absolute position.

    The sine's first half is stored negated, so that a rotation is two products, a roll and a sum.

    Args:
        cos: Cosines, shape `[positions, D]`, both halves equal (Hugging Face layout).
        sin: Sines, same shape.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        half = sin.shape[-1] // 2
        self.cos = cos
        self.signed_sin = torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)

    @classmethod
    def plain(cls, positions: int, head_dim: int, theta: float, dtype: torch.dtype) -> RotaryTable:
        """The unscaled table: angle = position * theta^(-2i / D)."""
        inverse = theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.outer(torch.arange(positions).float(), inverse).repeat(1, 2)
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def __len__(self) -> int:
        return self.cos.shape[0]

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> RotaryTable:
        """The same table in another dtype, where it is or on another device."""
        table = object.__new__(RotaryTable)
        table.cos = self.cos.to(device, dtype)
        table.signed_sin = self.signed_sin.to(device, dtype)
        return table

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for `positions`, each `[..., 1, D]` (heads broadcast)."""
        return self.cos[positions].unsqueeze(-2), self.signed_sin[positions].unsqueeze(-2)


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Applies rotary embedding to `[..., heads, D]`; `cos_sin` comes from `RotaryTable.at`."""
    cos, signed_sin = cos_sin
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


ROWS_TOGETHER = 1024
"""Rows of a long text that attend at once: a mask over all of them would be its square."""


@dataclass(frozen=True)
class CausalMask:
    """New rows of which each sees what is cached, the rows before it and itself.

    Attributes:
        cached: Keys before the new rows.
        dtype: Dtype of the queries.
        device: Where they lie.
    """

    cached: int
    dtype: torch.dtype
    device: torch.device

    def part(self, start: int, stop: int) -> Tensor:
        """Of the rows `start .. stop - 1`, over the keys that the last of them sees."""
        keys = torch.arange(self.cached + stop, device=self.device)
        hidden = keys > keys[self.cached + start :, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, float("-inf"))


def causal_mask(
    rows: int, cached: int, dtype: torch.dtype, device: torch.device
) -> Tensor | CausalMask | None:
    """The mask of new rows behind cached ones, in whichever form suits their number."""
    if rows > ROWS_TOGETHER:
        return CausalMask(cached, dtype, device)
    if rows == 1:
        return None
    return additive_mask(all_before(rows, device), cached + rows, dtype)


def all_before(rows: int, device: torch.device) -> Tensor:
    """Each row sees itself and those before it: bool `[n, n]`."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).tril()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | CausalMask | None) -> Tensor:
    """Grouped-query attention of one sequence.

    The query heads that share a key/value head are folded into rows, so keys are never repeated.

    Args:
        q: Queries `[N, H, D]`.
        k: Keys `[G, L, D]` (a view into a cache).
        v: Values `[G, L, D]`.
        mask: Additive `[N, L]` in q's dtype (0 = visible, -inf = hidden), a causal one that is made
            part by part, or None for all visible.

    Returns:
        `[N, H * D]`.
    """
    n, heads, dim = q.shape
    if isinstance(mask, CausalMask):
        parts = []
        for start in range(0, n, ROWS_TOGETHER):
            part = mask.part(start, min(n, start + ROWS_TOGETHER))
            seen = part.shape[1]
            parts.append(attend(q[start : start + len(part)], k[:, :seen], v[:, :seen], part))
        return torch.cat(parts)
    groups = k.shape[0]
    share = heads // groups
    rows = q.view(n, groups, share, dim).permute(1, 2, 0, 3).reshape(1, groups, share * n, dim)
    tiled = None if mask is None else mask.repeat(share, 1)
    out = F.scaled_dot_product_attention(rows, k[None], v[None], attn_mask=tiled)
    return out.view(groups, share, n, dim).permute(2, 0, 1, 3).reshape(n, heads * dim)


def additive_mask(visible: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """Turns a boolean mask over the newest keys into an additive one over all.

    Args:
        visible: True = may see, `[n, m]`; about the last m keys.
        keys: All keys; every row sees those before the last m.
        dtype: Dtype of the queries.

    Returns:
        `[n, keys]`.
    """
    mask = torch.zeros(visible.shape[0], keys, dtype=dtype, device=visible.device)
    mask[:, keys - visible.shape[1] :].masked_fill_(~visible, float("-inf"))
    return mask
