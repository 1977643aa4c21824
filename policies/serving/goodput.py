"""The draft length that should commit most tokens per second: SmartSpec's rule (arXiv 2406.14066).

With a running acceptance `a` per token, a draft of k tokens should commit `(1 - a^(k+1)) / (1 - a)`
tokens, and what the round takes follows from the server's costs. Of all lengths, 0 included, the
one is taken whose ratio is largest. TurboSpec is the same rule with costs that are profiled at the
start.

Behind a lookup the ratio counts what it serves as well: the share of requests, and the tokens and
rows of each, as they have been lately.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.policies.serving.rule import Batch, Ints, Ladder, Outcome, ServingRule

DECAY = 0.98
"""Weight of the past, per round."""
FIRST, WEIGHT = 0.7, 20.0
"""Acceptance before anything is known, and how many judged tokens that counts for."""


class GoodputLength(ServingRule):
    """One draft length for everybody: the one that should pay best.

    Args:
        ladder: An arm for every length.
        costs: What rounds cost.
        name: How tables call it.
    """

    def __init__(self, ladder: Ladder, costs: ServerCosts, name: str = "goodput") -> None:
        self.ladder, self.costs, self.name = ladder, costs, name
        self.arms = tuple(ladder.arms.values())
        self._column = costs.drafters.index(ladder.drafter)
        self.begin(1)

    def begin(self, servers: int) -> None:
        """See `ServingRule`."""
        self._accepted = np.full(servers, FIRST * WEIGHT)
        self._judged = np.full(servers, WEIGHT)
        self._looked = np.zeros((servers, 3))  # requests that lookups served, their tokens and rows
        self._served = np.zeros(servers)

    @property
    def acceptance(self) -> NDArray[np.float64]:
        """Chance that a drafted token is accepted, as it has been lately `[n]`."""
        return np.asarray(np.minimum(self._accepted / self._judged, 0.999))

    def choose(self, batch: Batch) -> Ints:
        """See `ServingRule`."""
        ratios = np.stack([self._ratio(length, batch) for length in self.ladder.arms], -1)
        return np.broadcast_to(ratios.argmax(-1)[:, None], batch.deciding.shape)

    def learn(self, batch: Batch, arms: Ints, outcome: Outcome) -> None:
        """See `ServingRule`."""
        drafted, accepted = outcome.drafted, outcome.accepted
        mine = outcome.verified[..., self._column] & batch.deciding & (drafted > 0)
        judged = np.minimum(accepted + 1, drafted)
        self._accepted = DECAY * self._accepted + (accepted * mine).sum(-1)
        self._judged = DECAY * self._judged + (judged * mine).sum(-1)
        others = batch.deciding & ~mine & (drafted > 0)
        looked = [(number * others).sum(-1) for number in (1, accepted + 1, drafted)]
        self._looked = DECAY * self._looked + np.stack(looked, -1)
        self._served = DECAY * self._served + batch.deciding.sum(-1)

    def _ratio(self, length: int, batch: Batch) -> NDArray[np.float64]:
        """Tokens per second that a round with this length should commit `[n]`."""
        size, a = np.maximum(batch.size, 1), self.acceptance
        share, tokens, rows = self._looked.T / np.maximum(self._served, 1e-9)
        left = (1 - share) * size
        expected = left * (1 - a ** (length + 1)) / (1 - a) + tokens * size
        verified = size + left * length + rows * size
        seconds = self.costs.pass_seconds(size, verified, batch.cached)
        drafting = self.costs.chain_seconds(self.ladder.drafter, left, length, batch.cached)
        return np.asarray(expected / (seconds + (drafting if length else 0.0)))
