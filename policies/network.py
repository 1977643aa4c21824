"""The network of a learned router, in plain torch: small enough to cost less than a millisecond."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RouterEncoder(nn.Module):
    """Turns an observation into features; training and deployment share it.

    Args:
        signals: Entries of `signals`.
        hidden: Width of the target's hidden state.
        width: Features.
    """

    def __init__(self, signals: int, hidden: int, width: int = 64) -> None:
        super().__init__()
        self.hidden_norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.hidden = nn.Linear(hidden, width)
        self.mix = nn.Linear(width + signals, width)

    def forward(self, signals: Tensor, hidden: Tensor) -> Tensor:
        """Features `[n, width]` of `signals [n, s]` and `hidden [n, d]`."""
        compressed = torch.tanh(self.hidden(self.hidden_norm(hidden)))
        return torch.tanh(self.mix(torch.cat([compressed, signals], dim=-1)))


class RouterNetwork(nn.Module):
    """Encoder and one score per arm."""

    def __init__(self, signals: int, hidden: int, arms: int, width: int = 64) -> None:
        super().__init__()
        self.encoder = RouterEncoder(signals, hidden, width)
        self.scores = nn.Linear(width, arms)

    def forward(self, signals: Tensor, hidden: Tensor) -> Tensor:
        """Scores `[n, arms]`; softmax of them is the policy."""
        out: Tensor = self.scores(self.encoder(signals, hidden))
        return out
