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
        scaled = (q * dim**-0.5).view(rows, groups, -1, dim)
        by_group = scaled.transpose(0, 1).reshape(groups, -1, dim)  # [G, w * H / G, D]
        before = (by_group @ keys[:, :text].transpose(1, 2)).view(groups, rows, -1, text)
        own_keys, own_values = (x[:, self._picked].transpose(0, 1) for x in (keys, values))
        own = scaled @ own_keys.transpose(2, 3)  # [w, G, H / G, p]
        scores = torch.cat([before.transpose(0, 1), own], dim=-1).float() + self._hidden
        weights = scores.softmax(-1).to(q.dtype)
        flat = weights[..., :text].transpose(0, 1).reshape(groups, -1, text)
        out = (flat @ values[:, :text]).view(groups, rows, -1, dim).transpose(0, 1)
        return (out + weights[..., text:] @ own_values).reshape(rows, heads * dim)

    @cached_property
    def _picked(self) -> Tensor:
        """Where the drafted rows lie in the cache; any row where there is none."""
        return self.committed + self.drafted.clamp(min=0)

    @cached_property
    def _hidden(self) -> Tensor:
        """What is added to scores `[w, 1, 1, text + p]`."""
        text = torch.arange(self.committed, device=self.before.device) >= self.before[:, None]
        hidden = torch.cat([text, self.drafted < 0], dim=1)
        mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return mask[:, None, None]
