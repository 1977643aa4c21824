"""The network of a learned scheduler: one head for every user, that sees all of them at once.

    own     = layers(user)                                    for every user, the same layers
    whole   = [mean of own, maximum of own, cell]             over those who are there
    outputs = head(own, whole)                                for every user, the same head

Mean and maximum do not ask who is first, so the network is indifferent to the order of users, and
no weight belongs to a place, so it serves any number of them (Zaheer et al. 2017, "Deep Sets"). How
many there are is among the cell's numbers. A maximum is pooled because a round waits for the
slowest.

Notation: n = cells, K = places, F = numbers of a user, C = numbers of the cell, w = width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UserPool(nn.Module):
    """Every user's own features, and what all of them together look like.

    Args:
        user_numbers: F.
        cell_numbers: C.
        width: w.
        active: Which of a user's numbers is 1 where somebody is there.
    """

    def __init__(self, user_numbers: int, cell_numbers: int, width: int, active: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(user_numbers, width)
        self.second = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.0)  # whoever fits the network to few texts raises it
        self.active = active
        self.size = 2 * width + cell_numbers

    def forward(self, users: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Own features `[n, K, w]` and those of the whole `[n, size]`.

        Args:
            users: Numbers of users `[n, K, F]`.
            cell: Numbers of the cell `[n, C]`.
        """
        active = users[..., self.active, None]
        first = self.dropout(torch.relu(self.first(users)))
        own = torch.relu(self.second(first)) * active
        mean = own.sum(1) / active.sum(1).clamp(min=1)
        return own, torch.cat([mean, own.amax(1), cell], dim=-1)  # own is 0 or more


class SchedulerNetwork(nn.Module):
    """Outputs for every user.

    Args:
        user_numbers: F.
        cell_numbers: C.
        outputs: Numbers that each user's head says: scores of draft lengths, or means and spreads.
        width: w.
        active: See `UserPool`.
    """

    def __init__(
        self, user_numbers: int, cell_numbers: int, outputs: int, width: int = 64, active: int = 0
    ) -> None:
        super().__init__()
        self.pool = UserPool(user_numbers, cell_numbers, width, active)
        self.from_own = nn.Linear(width, width)
        self.from_whole = nn.Linear(self.pool.size, width)
        self.outputs = nn.Linear(width, outputs)

    def forward(self, users: Tensor, cell: Tensor) -> Tensor:
        """Outputs `[n, K, outputs]`; see `UserPool` for the arguments."""
        own, whole = self.pool(users, cell)
        mixed = torch.relu(self.from_own(own) + self.from_whole(whole)[:, None])
        out: Tensor = self.outputs(self.pool.dropout(mixed))
        return out
