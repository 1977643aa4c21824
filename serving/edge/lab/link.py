"""One direction of a device's link: a rate that changes, a bounded queue, loss, delay and jitter.

    put -> queue, tail drop -> leaves at the rate -> may be lost -> delay + jitter -> take

The rate is a token bucket's without a burst: a packet of n bits leaves n / rate seconds after the
one before it. The rate may change, or be 0, while a packet is under way; what has been sent counts.
Times are seconds of any clock that never goes back; nothing here reads one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

SOON = 1e-6
"""Seconds: a change comes no sooner, whatever rounding says."""


@dataclass(frozen=True)
class Steps:
    """A number that holds until the next, again and again.

    Attributes:
        seconds: When each begins, ascending from 0.
        values: The numbers.
        period: Seconds until the first one is back, above the last beginning.
        since: When it began, by the link's clock.
    """

    seconds: Sequence[float]
    values: Sequence[float]
    period: float
    since: float = 0.0

    def at(self, now: float) -> float:
        """The number of a moment."""
        return self.values[max(0, bisect_right(self.seconds, self._moment(now)) - 1)]

    def changes(self, now: float) -> float:
        """When it changes next."""
        moment = self._moment(now)
        index = bisect_right(self.seconds, moment)
        later = self.seconds[index] if index < len(self.seconds) else self.period
        return now + max(later - moment, SOON)

    def _moment(self, now: float) -> float:
        return (now - self.since) % self.period


class Rate(Protocol):
    """Bits per second as time passes."""

    def at(self, now: float) -> float:
        """The rate of a moment."""

    def changes(self, now: float) -> float:
        """When it changes next by itself; infinity for never."""


@dataclass
class FixedRate:
    """The same rate for ever; a `Rate`."""

    bits: float = math.inf

    def at(self, now: float) -> float:
        """See `Rate.at`."""
        return self.bits

    def changes(self, now: float) -> float:
        """See `Rate.changes`."""
        return math.inf


@dataclass
class SharedRate:
    """A share of what a band carries over a channel; a `Rate`.

    Attributes:
        band: Bits per second over the whole band.
        share: Part of the band; `Link.advance` must be called before it is changed.
        least: Bits per second that there are at any share: what a radio's control channel has.
    """

    band: Steps
    share: float = 1.0
    least: float = 0.0

    def at(self, now: float) -> float:
        """See `Rate.at`."""
        return max(self.least, self.share * self.band.at(now))

    def changes(self, now: float) -> float:
        """See `Rate.changes`."""
        return self.band.changes(now)


@dataclass(frozen=True)
class Air:
    """What happens to a packet that has left.

    Attributes:
        delay, jitter: It arrives `delay` seconds later, up to `jitter` more or less (uniform), and
            never before one that left earlier.
        loss: Probability that it never does.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0


@dataclass
class Counts:
    """Packets: sent on, lost in the air, dropped at a full queue; and bytes that were sent on."""

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    dropped: int = 0


class Link:
    """Carries packets one way.

    Args:
        rate: How fast.
        air: What happens then.
        random: Where loss and jitter come from.
        queue_bytes: What may wait; what does not fit is dropped.

    Attributes:
        counts: What happened.
    """

    def __init__(self, rate: Rate, air: Air, random: Random, queue_bytes: int) -> None:
        self.rate, self.counts = rate, Counts()
        self._air, self._random, self._room = air, random, queue_bytes
        self._queue: deque[bytes] = deque()
        self._left, self._last = 0.0, 0.0
        self._flying: deque[tuple[float, bytes]] = deque()
        self._down_until = -math.inf

    def put(self, packet: bytes, now: float) -> None:
        """A packet is to be sent."""
        self.advance(now)
        if len(packet) > self._room:
            self.counts.dropped += 1
            return
        self._room -= len(packet)
        if not self._queue:
            self._left, self._last = 8.0 * len(packet), now
        self._queue.append(packet)
        self.advance(now)

    def cut(self, now: float, seconds: float) -> None:
        """Everything that leaves is lost for some seconds."""
        self.advance(now)
        self._down_until = now + seconds

    def advance(self, now: float) -> None:
        """Lets what has time to leave by now do so."""
        while self._queue and self._last <= now:
            rate = self.rate.at(self._last)
            until = min(now, self.rate.changes(self._last))
            end = self._last + self._left / rate if rate > 0 else math.inf
            if end > until:
                self._left -= rate * (until - self._last) if rate > 0 else 0.0
                self._last = until
                if until >= now:
                    return
                continue
            packet = self._queue.popleft()
            self._room += len(packet)
            self._last = end
            self._left = 8.0 * len(self._queue[0]) if self._queue else 0.0
            self._leave(packet, end)

    def take(self, now: float) -> list[bytes]:
        """Packets that have arrived by now."""
        self.advance(now)
        arrived = []
        while self._flying and self._flying[0][0] <= now:
            arrived.append(self._flying.popleft()[1])
        return arrived

    def due(self) -> float:
        """When there may be something to take, or a rate to look at; infinity for not at all."""
        first = self._flying[0][0] if self._flying else math.inf
        if not self._queue:
            return first
        rate = self.rate.at(self._last)
        end = self._last + self._left / rate if rate > 0 else math.inf
        return min(first, end, self.rate.changes(self._last))

    def _leave(self, packet: bytes, when: float) -> None:
        if when < self._down_until or self._random.random() < self._air.loss:
            self.counts.lost += 1
            return
        spread = self._air.jitter * (2 * self._random.random() - 1) if self._air.jitter else 0.0
        arrival = when + max(0.0, self._air.delay + spread)
        if self._flying:
            arrival = max(arrival, self._flying[-1][0])
        self._flying.append((arrival, packet))
        self.counts.packets += 1
        self.counts.bytes += len(packet)
