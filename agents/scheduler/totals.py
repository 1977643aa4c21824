"""What schedulers are judged by, counted while they play: goodput, fairness, latency, waste.

Notation: n = cells, K = places of users, A = arms (one chain per drafter).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from draftgym.envs.cell.cell import Cell, CellRound, CellTime
from draftgym.envs.radio.channel import Generators
from draftgym.envs.scheduler.planners import MakePlanner, play_rounds

PERCENTILES = (50, 95, 99)
PIECES = tuple(piece.name for piece in fields(CellTime))
"""Pieces of the time of a round."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CellTotals:
    """What n cells did in some rounds.

    Attributes:
        tokens: Committed tokens `[n]`.
        seconds: Time of all rounds `[n]`, without times in which nobody was there.
        round_goodput: Mean over rounds of tokens per second of each `[n]`: the papers' figure,
            which hardly notices the rounds that take long.
        drafted: Verified draft tokens `[n]`.
        accepted: Those of them that were accepted `[n]`.
        rates: Tokens per second of every user while it was there, one array per cell.
        token_seconds: Seconds that a committed token took: what its user had waited since it was
            verified last, divided by the tokens that came together. One entry per user and round.
        token_counts: How many tokens took that.
        pieces: Seconds by `PIECES` `[n, 6]`; their sums are `seconds`.
        by_arm: Of users of each arm: verified rounds, those of them with a draft, tokens drafted,
            tokens committed `[n, A, 4]`.
    """

    tokens: Floats
    seconds: Floats
    round_goodput: Floats
    drafted: Floats
    accepted: Floats
    rates: list[Floats]
    token_seconds: Floats
    token_counts: Floats
    pieces: Floats
    by_arm: Floats

    @property
    def goodput(self) -> float:
        """Total tokens over total time, per cell."""
        return float(self.tokens.sum() / self.seconds.sum())

    @property
    def fairness(self) -> float:
        """Jain's index of the users of a cell, 1 / users to 1; the mean over cells."""
        return float(np.mean([jain(rates) for rates in self.rates]))

    @property
    def wasted(self) -> float:
        """Share of the drafted tokens that were not accepted; 0 where nothing was drafted."""
        return float(1 - self.accepted.sum() / max(self.drafted.sum(), 1.0))

    def latency(self, percentile: float) -> float:
        """Seconds per token that so many per cent of the tokens did not exceed."""
        order = np.argsort(self.token_seconds)
        below = self.token_counts[order].cumsum()
        index = np.searchsorted(below, percentile / 100 * below[-1])
        return float(self.token_seconds[order][min(index, len(order) - 1)])

    def user_rate(self, percentile: float) -> float:
        """Tokens per second that so many per cent of the users did not exceed."""
        return float(np.percentile(np.concatenate(self.rates), percentile))


def jain(rates: Floats) -> float:
    """Jain's fairness index, `(sum r)^2 / (N sum r^2)`: 1 if all are alike, 1 / N at worst."""
    squares = float((rates**2).sum())
    return float(rates.sum()) ** 2 / (len(rates) * squares) if squares else 1.0


def play_cells(planner: str | MakePlanner, cell: Cell, rng: Generators, rounds: int) -> CellTotals:
    """Resets the cells, plays some rounds and counts what they did; see `play_rounds`."""
    return count_rounds(play_rounds(planner, cell, rng, rounds), len(cell.table.arms))


def count_rounds(rounds: Iterable[CellRound], arms: int) -> CellTotals:
    """Counts what rounds did; there is one at least, of the same cells, with so many arms.

    A user's time counts from when it came, and a user that comes into an emptied place is another.
    """
    count: _Count | None = None
    for played in rounds:
        count = count or _Count(played.taken.shape, arms)
        count.add(played)
    assert count is not None, "at least one round"
    return count.result()


class _Count:
    """Sums that are being built up, of n cells with K places."""

    def __init__(self, shape: tuple[int, ...], arms: int) -> None:
        self.rounds = 0
        self.pieces = np.zeros((shape[0], len(PIECES)))
        self.by_arm = np.zeros((shape[0], arms, 4))
        self.tokens, self.seconds, self.ratios, self.drafted, self.accepted = np.zeros(
            (5, shape[0])
        )
        self.waited, self.got, self.stayed = np.zeros((3, *shape))
        self.rates: list[list[float]] = [[] for _ in range(shape[0])]
        self.token_seconds: list[Floats] = []
        self.token_counts: list[Floats] = []

    def add(self, played: CellRound) -> None:
        """Counts a round."""
        seconds, committed = played.time.total, played.committed.sum(-1)
        self.rounds += 1
        self.tokens += committed
        self.seconds += seconds
        self.ratios += committed / seconds
        self.drafted += played.drafted.sum(-1)
        self.accepted += committed - played.taken.sum(-1)
        passed = np.where(played.present, seconds[:, None], 0.0)
        self.waited += passed
        self.stayed += passed
        self.got += played.committed
        taken = played.taken
        self.pieces += np.stack([getattr(played.time, piece) for piece in PIECES], -1)
        facts = taken, taken & (played.drafted > 0), played.drafted, played.committed
        for arm in range(self.by_arm.shape[1]):
            those = taken & (played.arms == arm)
            self.by_arm[:, arm] += np.stack([(fact * those).sum(-1) for fact in facts], -1)
        self.token_seconds.append(self.waited[taken] / played.committed[taken])
        self.token_counts.append(played.committed[taken].astype(float))
        self.waited[taken] = 0.0
        # Who comes has waited for nothing yet; whoever was in the place before is gone.
        newcomers = played.newcomers
        self._close(newcomers)
        self.waited[newcomers] = 0.0

    def result(self) -> CellTotals:
        """The totals."""
        self._close(np.ones_like(self.stayed, dtype=bool))
        return CellTotals(
            self.tokens,
            self.seconds,
            self.ratios / self.rounds,
            self.drafted,
            self.accepted,
            [np.array(rates) for rates in self.rates],
            np.concatenate(self.token_seconds),
            np.concatenate(self.token_counts),
            self.pieces,
            self.by_arm,
        )

    def _close(self, where: NDArray[np.bool_]) -> None:
        """Notes the rates of users that are done."""
        for cell, place in np.argwhere(where & (self.stayed > 0)).tolist():
            self.rates[cell].append(float(self.got[cell, place] / self.stayed[cell, place]))
        self.got[where] = self.stayed[where] = 0.0
