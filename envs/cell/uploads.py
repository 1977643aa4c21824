"""Drafts under way: who is drafting or uploading, when it will be there, and what is verified next.

A draft begins, is complete when its tokens are drafted, and is then sent at the rate of its user's
share. Shares may change at every step while it is under way; what has been sent counts.

Synchronous rounds are the papers': everybody drafts and uploads side by side, the server waits for
the slowest and verifies all drafts in one pass. In asynchronous rounds, which are our addition, it
waits for a window after the first arrival and verifies who is there; the others go on and are
verified later.

Notation: n = cells, K = users. All moments are seconds on the clock of the user's cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from draftgym.envs.cell.texts import Ints, Mask
from draftgym.policies.multispin.uplink import Floats


def upload_seconds(bits: ArrayLike, rate: ArrayLike) -> Floats:
    """Time on the air (2606.04581 eq. 9, 2608.29618 eq. 19).

    Args:
        bits: What each user sends `[..., K]`.
        rate: Bits per second, same shape.

    Returns:
        Seconds `[..., K]`: 0 for who sends nothing, infinity for who sends at no rate.
    """
    bits, rate = np.broadcast_arrays(np.asarray(bits, float), np.asarray(rate, float))
    forever = np.where(bits > 0, np.inf, 0.0)
    return np.asarray(np.divide(bits, rate, out=forever, where=(rate > 0) & (bits > 0)))


def next_batch(arrivals: Floats, window: float, free_at: ArrayLike = 0.0) -> tuple[Floats, Mask]:
    """The next batch of a server that waits for a window and verifies whoever is there.

    The window opens with the first arrival. The pass begins when the window closes, or at once when
    the last expected draft is there, but not before the server is free; a draft that comes while it
    is busy is in the batch as well. An infinite window gives synchronous rounds (2606.04581 eq. 26:
    the slowest decides), a window of 0 verifies as soon as there is something.

    Args:
        arrivals: When each user's draft is complete at the server `[..., K]`; infinity for who is
            sending none.
        window: Seconds to wait after the first arrival.
        free_at: When the server has finished its last pass `[...]`.

    Returns:
        When the pass begins `[...]`, and whose drafts are in it `[..., K]`. Where nobody is
        expected it is empty and begins when the server is free.

    Raises:
        ValueError: A negative window.
    """
    if not window >= 0:
        raise ValueError(f"a window of {window} seconds")
    arrivals = np.asarray(arrivals, float)
    expected = np.isfinite(arrivals)
    last = arrivals.max(-1, where=expected, initial=-np.inf)
    start = np.maximum(np.minimum(arrivals.min(-1) + window, last), np.asarray(free_at, float))
    return start, expected & (arrivals <= start[..., None])


class Uploads:
    """The drafts of all users of n cells, at most one each; all arrays are `[n, K]`.

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
