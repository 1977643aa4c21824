"""The arithmetic that the target and the neural drafters share.

Notation: N = rows (tokens) of this call, L = keys visible to them, H = query heads,
G = key/value heads, D = head dimension, d = hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """Applies rotary embedding to `[..., heads, D]`; `cos_sin` comes from `RotaryTable.at`.

    A table narrower than D turns the first dimensions of each head and leaves the others.
    """
    cos, signed_sin = cos_sin
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([rotate(x[..., :width], cos_sin), x[..., width:]], dim=-1)
    return torch.addcmul(x * cos, x.roll(width // 2, -1), signed_sin)


@dataclass(frozen=True)
class Sight:
    """Which keys the new rows of a sequence see.

    Attributes:
        start: Keys before it are seen by none.
        mask: Additive `[n, L - start]` in the queries' dtype (0 = visible, -inf = hidden), or None
            where every row sees all other keys.
    """

    start: int = 0
    mask: Tensor | None = None


def all_before(rows: int, device: torch.device) -> Tensor:
    """Each row sees itself and those before it: bool `[n, n]`."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).tril()


def full_sight(
    rows: int, cached: int, visible: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Sight:
    """New rows that see what is cached, however far away, and each other.

    Args:
        rows: How many they are.
        cached: Keys before them.
        visible: As in `NewRows`.
        dtype: Dtype of the queries.
        device: Where they lie.
    """
    if visible is None:
        if rows == 1:
            return Sight()
        visible = all_before(rows, device)
    return Sight(0, additive_mask(visible, cached + rows, dtype))


def window_sight(sight: Sight, start: int, window: int, rows: Tensor, keys: Tensor) -> Sight:
    """What is left of a sight where a row sees only the last `window` positions, its own included.

    Args:
        sight: Of the same rows where nothing is too far away.
        start: A key before which all are too far away from every row.
        window: How many positions.
        rows: Positions of the rows `[n]`.
        keys: Positions of all keys `[L]`; before `start`, they need not be true.
    """
    if sight.mask is None:  # the only row, and `start` is the first key that it sees
        return Sight(start)
    far = rows[:, None] - keys[start:] >= window
    return Sight(start, sight.mask[:, start:].masked_fill(far, float("-inf")))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sight: Sight,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Grouped-query attention of one sequence.

    Args:
        q: Queries `[N, H, D]`.
        k: Keys `[G, L, D]` (a view into a cache).
        v: Values `[G, L, D]`.
        sight: Which keys each query sees.
        scale: Of the scores; 1 / sqrt(D) where it is None.
        cap: Scores are pressed between -cap and cap by a tanh; None leaves them.

    Returns:
        `[N, H * D]`.
    """
    if sight.start:
        k, v = k[:, sight.start :], v[:, sight.start :]
    if cap is not None:
        return _capped(q, k, v, sight.mask, q.shape[-1] ** -0.5 if scale is None else scale, cap)
    options: dict[str, Any] = {"attn_mask": sight.mask, "scale": scale}
    if q.device.type == "cpu":  # neither keys nor mask are repeated for the heads that share them
        heads = q.transpose(0, 1)[None]
        out = F.scaled_dot_product_attention(heads, k[None], v[None], enable_gqa=True, **options)
        return out[0].transpose(0, 1).flatten(1)
    # With a mask, other devices' kernels would repeat them; heads of a group are a batch to them.
    share = q.shape[1] // k.shape[0]
    heads = q.unflatten(1, (k.shape[0], share)).permute(1, 2, 0, 3)
    k, v = (x[:, None].expand(-1, share, -1, -1) for x in (k, v))
    out = F.scaled_dot_product_attention(heads, k, v, **options)
    return out.permute(2, 0, 1, 3).flatten(1)


SCORES_TOGETHER = 1 << 24
"""Scores that are held at once where they have to be written down."""


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float
) -> Tensor:
    """Attention with capped scores, which torch's own does not have; some rows at a time."""
    groups, keys = k.shape[:2]
    parts = []
    together = max(1, SCORES_TOGETHER // (q.shape[1] * keys))
    for start in range(0, len(q), together):
        rows = q[start : start + together].unflatten(1, (groups, -1)).permute(1, 2, 0, 3)
        scores = rows.flatten(1, 2) @ k.transpose(1, 2) * scale
        scores = ((scores / cap).tanh_() * cap).view(*rows.shape[:3], keys)
        if mask is not None:
            scores = scores + mask[start : start + together]
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        out = (weights.flatten(1, 2) @ v).view(*rows.shape[:3], -1)
        parts.append(out.permute(2, 0, 1, 3).flatten(1))
    return torch.cat(parts)


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
