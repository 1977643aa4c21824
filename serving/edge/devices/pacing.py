"""Uploads at a device's share of the band: what the radio would enforce, in user space.

A token bucket without a burst: a message of n bits has left n / rate seconds after the one before
it, or after now. The rate may change, or be 0, while a message is under way; what has been sent
counts.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

LEAST = 1e-6
"""Bits that nobody waits for: rounding leaves some."""

Wait = Callable[[threading.Condition, float | None], object]
"""Waits for a condition at most so many seconds, for ever where None."""


class Pacer:
    """Lets a device's messages go at a rate.

    Args:
        clock: Seconds.
        wait: Waits until the rate may have changed, or for some seconds.
        paced: Off where the network itself keeps to rates: then nothing waits here.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = threading.Condition.wait,
        paced: bool = True,
    ) -> None:
        self._clock, self._wait = clock, wait
        self._changed = threading.Condition()
        self._rate, self._open = math.inf, paced

    def set_rate(self, bits_per_second: float) -> None:
        """The rate from now on.

        Args:
            bits_per_second: 0 for none, infinity for no pacing.
        """
        with self._changed:
            self._rate = bits_per_second
            self._changed.notify_all()

    def close(self) -> None:
        """Lets whoever waits go at once: the stream has ended."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def send(self, bits: float) -> None:
        """Returns when a message of so many bits has left."""
        with self._changed:
            last = self._clock()
            while bits > LEAST and self._open and not math.isinf(self._rate):
                rate = self._rate
                self._wait(self._changed, bits / rate if rate > 0 else None)
                now = self._clock()
                bits -= rate * (now - last)
                last = now
