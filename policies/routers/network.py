"""The network of a learned router, in plain torch: small enough to cost less than a millisecond."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RouterEncoder(nn.Module):
    """Turns an observation into features; training and deployment share it.

    The hidden state has hundreds of entries and says much about one text and little about the
    next, so it passes through a neck; without that a few hundred texts are learned by heart.

    Args:
        signals: Entries of `signals`.
        hidden: Width of the target's hidden state.
        width: Features.
        neck: What the hidden state is narrowed to.
        dropout: Share of the hidden state that is left out at random while training.
    """

    def __init__(
        self, signals: int, hidden: int, width: int = 64, neck: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden_norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(hidden, neck)
        self.mix = nn.Linear(neck + signals, width)

    def forward(self, signals: Tensor, hidden: Tensor) -> Tensor:
        """Features `[n, width]` of `signals [n, s]` and `hidden [n, d]`."""
        compressed = torch.tanh(self.hidden(self.dropout(self.hidden_norm(hidden))))
        return torch.tanh(self.mix(torch.cat([compressed, signals], dim=-1)))


class RouterNetwork(nn.Module):
    """Encoder and one score per arm."""

    def __init__(
        self,
        signals: int,
        hidden: int,
        arms: int,
        width: int = 64,
        neck: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = RouterEncoder(signals, hidden, width, neck, dropout)
        self.scores = nn.Linear(width, arms)

    def forward(self, signals: Tensor, hidden: Tensor) -> Tensor:
        """Scores `[n, arms]`; softmax of them is the policy."""
        out: Tensor = self.scores(self.encoder(signals, hidden))
        return out
