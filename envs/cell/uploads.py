"""Drafts under way: who is drafting or uploading, how much is left, and when it will be there.

A draft begins, is complete when its tokens are drafted, and is then sent at the rate of its user's
share. Shares may change at every step while it is under way; what has been sent counts. All arrays
are `[n, K]`, all moments are on the clock of the user's cell.
"""

from __future__ import annotations

import numpy as np

from draftgym.envs.cell.round_time import upload_seconds
from draftgym.envs.cell.text_table import Ints, Mask
from draftgym.policies.multispin.uplink import Floats


class Uploads:
    """The drafts of all users of n cells, at most one each.

    Args:
        shape: `(n, K)`.
        deadline: Seconds after which a draft is no longer waited for; None waits for ever.

    Attributes:
        begin: When each may begin, or has begun.
        in_flight: Who has a draft under way.
        planned: Tokens that these were told to draft.
        ready: When they have been drafted.
        arrival: When the server has them; infinity where nothing is being sent.
        share: Parts of the band since the last `divide`.
    """

    def __init__(self, shape: tuple[int, int], deadline: float | None) -> None:
        self._deadline = np.inf if deadline is None else deadline
        self.in_flight, self._late = np.zeros(shape, bool), np.zeros(shape, bool)
        self.planned, self._drafted = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.begin, self.ready, self.arrival = np.zeros((3, *shape))
        self._bits, self.share, self._rate = np.zeros((3, *shape))
        self._divided_at = np.zeros(shape[0])

    @property
    def sent(self) -> Ints:
        """Tokens of each draft that the server gets to see; none of who misses the deadline."""
        return np.where(self._late, 0, self._drafted)

    def free(self, where: Mask, begin: Floats) -> None:
        """These have no draft under way and may begin one at that moment."""
        self.in_flight = self.in_flight & ~where
        self.begin = np.where(where, begin, self.begin)

    def bits_left(self, clock: Floats) -> Floats:
        """Bits that each has still to send.

        Args:
            clock: Now `[n]`.
        """
        now = clock[:, None]
        since = np.maximum(self.ready, self._divided_at[:, None])
        sent = self._rate * np.maximum(now - since, 0.0)
        left = np.where(now < self.arrival, self._bits - sent, 0.0)
        return np.where(self.in_flight, np.maximum(left, 0.0), 0.0)

    def start(
        self, where: Mask, planned: Ints, drafted: Ints, seconds: Floats, bits: Ints, clock: Floats
    ) -> None:
        """These begin a draft; `divide` must follow.

        Args:
            where: Who.
            planned: Tokens that they were told.
            drafted: Tokens that their drafters find.
            seconds: Time of drafting them.
            bits: What is to be sent.
            clock: Now `[n]`.
        """
        self._bits = np.where(where, bits, self.bits_left(clock))
        self.planned = np.where(where, planned, self.planned)
        self._drafted = np.where(where, drafted, self._drafted)
        self.ready = np.where(where, self.begin + seconds, self.ready)
        self.arrival = np.where(where, np.inf, self.arrival)  # that of their last draft is stale
        self.in_flight = self.in_flight | where

    def divide(self, shares: Floats, rate: Floats, clock: Floats) -> None:
        """Everybody has these shares from now on.

        Args:
            shares: Parts of the band.
            rate: Bits per second that they carry.
            clock: Now `[n]`.
        """
        now = clock[:, None]
        self.share = np.where(self._bits > 0, shares, 0.0)
        self._rate, self._divided_at = np.where(self._bits > 0, rate, 0.0), clock
        there = np.maximum(self.ready, now) + upload_seconds(self._bits, self._rate)
        # Whose draft came while the server was busy has nothing left to send; it came when it did.
        came = self.in_flight & (self._bits <= 0) & (self.arrival <= now)
        self.arrival = np.where(came, self.arrival, there)
        latest = self.begin + self._deadline
        self._late = (self._late & came) | (self.arrival > latest)
        self.arrival = np.minimum(self.arrival, latest)
