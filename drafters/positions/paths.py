"""Who sees whom where a text is drafted at many places: few of very many rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Paths:
    """Rows that see the beginning of a text, and of the drafted rows behind it those of a path.

    Of all rows that are drafted at all places each sees a handful, so its keys are picked out; a
    mask over all of them would be nearly empty.

    Attributes:
        committed: Rows of the text in the cache.
        before: How many of them each row sees `[w]`.
        drafted: Which rows of the cache behind them it sees, itself among them, counted from the
            first one behind the text: `[w, p]`, filled up with -1.
    """

    committed: int
    before: Tensor
    drafted: Tensor

    def mask(self, rows: int) -> Tensor:
        """The same as a mask over so many rows of the cache: bool `[w, rows]`."""
        text = torch.arange(self.committed, device=self.before.device) < self.before[:, None]
        behind = text.new_zeros(len(text), rows - self.committed + 1)
        behind.scatter_(1, self.drafted + 1, True)
        return torch.cat([text, behind[:, 1:]], dim=1)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Grouped-query attention, `[w, H * D]`.

        Args:
            q: Queries `[w, H, D]`.
            keys: All keys of the cache `[G, L, D]`.
            values: All values, same shape.
        """
        rows, heads, dim = q.shape
        groups, text = keys.shape[0], self.committed
        grouped = (q * dim**-0.5).view(rows, groups, -1, dim).transpose(0, 1)
        flat = grouped.flatten(1, 2)  # [G, w * H / G, D]
        hidden = self._hidden_text.to(q.dtype).repeat_interleave(heads // groups, 0)
        before = torch.baddbmm(hidden[None], flat, keys[:, :text].transpose(1, 2))
        own_keys, own_values = keys[:, self._picked], values[:, self._picked]  # [G, w, p, D]
        own = grouped @ own_keys.transpose(2, 3) + self._hidden_drafted
        scores = torch.cat([before.view(*grouped.shape[:3], text), own], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        out = weights.flatten(1, 2)[..., :text] @ values[:, :text]
        out = out.view(grouped.shape) + weights[..., text:] @ own_values
        return out.transpose(0, 1).reshape(rows, heads * dim)

    @cached_property
    def _picked(self) -> Tensor:
        """Where the drafted rows lie in the cache; any row where there is none."""
        return self.committed + self.drafted.clamp(min=0)

    @cached_property
    def _hidden_text(self) -> Tensor:
        """What is added to scores of the text `[w, text]`."""
        text = torch.arange(self.committed, device=self.before.device)
        return _minus_infinity(text >= self.before[:, None])

    @cached_property
    def _hidden_drafted(self) -> Tensor:
        """What is added to scores of the drafted rows `[w, 1, p]`."""
        return _minus_infinity(self.drafted < 0)[:, None]


def _minus_infinity(where: Tensor) -> Tensor:
    zeros = torch.zeros(where.shape, device=where.device)
    return zeros.masked_fill_(where, -torch.inf)
