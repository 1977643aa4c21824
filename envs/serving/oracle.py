"""An oracle of rounds: it knows what every arm would commit, and plays each round as the last.

No rule that sees a round before it is played can earn more in it at this price. Over a whole text a
choice now can still spoil a better one later, so that what it writes per second is no bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from draftgym.envs.load.load import Load
from draftgym.envs.serving.play import Served, play
from draftgym.policies.serving.planned import PlannedPlayer


def play_oracle(load: Load, price: float, seeds: Sequence[int], within: float = 1e-3) -> Served:
    """Episodes at the price at which greedy rounds write as many tokens a second (Dinkelbach).

    Args:
        load: The servers.
        price: Where to begin: what somebody writes per second.
        seeds: See `play`.
        within: Relative gain below which the search ends. A greedy choice is not the best one for
            its price, so it may also end with a loss; the best episodes that were met are returned.
    """
    best = play(load, PlannedPlayer(None, load, price), seeds)
    for _ in range(10):
        found = play(load, PlannedPlayer(None, load, best.goodput), seeds)
        if found.goodput <= best.goodput * (1 + within):
            return max(best, found, key=lambda one: one.goodput)
        best = found
    return best
