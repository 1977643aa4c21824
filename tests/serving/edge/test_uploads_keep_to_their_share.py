"""A device's messages leave at the rate of its share, whatever it would like."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest

from draftgym.decoding.model.target import Target
from draftgym.envs.radio.radio import from_db
from draftgym.serving.edge.devices.pacing import Pacer
from tests.serving.edge.edges import plain, serving, text


class Timeline:
    """A clock that goes on by waiting alone, and what happens meanwhile.

    Args:
        events: What is to be done at which second, in order.
    """

    def __init__(self, *events: tuple[float, Callable[[], None]]) -> None:
        self.now, self._events = 0.0, list(events)

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        """Goes on to the end of the wait, or to the next event."""
        until = math.inf if seconds is None else self.now + seconds
        if self._events and self._events[0][0] <= until:
            self.now, event = self._events.pop(0)
            event()
            return
        assert until < math.inf, "nothing will ever happen"
        self.now = until


def test_a_message_takes_its_bits_over_the_rate() -> None:
    time = Timeline()
    pacer = Pacer(time.clock, time.wait)
    pacer.set_rate(1000)
    pacer.send(500)
    assert time.now == pytest.approx(0.5)
    pacer.send(1500)
    assert time.now == pytest.approx(2.0)


def test_what_was_sent_counts_when_shares_change() -> None:
    """Half of the bits at one rate, nothing for a second, the rest at another."""
    pacer: Pacer
    time = Timeline(
        (1.0, lambda: pacer.set_rate(0)),
        (2.0, lambda: pacer.set_rate(250)),
    )
    pacer = Pacer(time.clock, time.wait)
    pacer.set_rate(500)
    pacer.send(1000)
    assert time.now == pytest.approx(1 + 1 + 500 / 250)


def test_idle_time_is_not_saved_up() -> None:
    time = Timeline()
    pacer = Pacer(time.clock, time.wait)
    pacer.set_rate(100)
    time.now = 50.0
    pacer.send(100)
    assert time.now == pytest.approx(51.0)


def test_nothing_waits_without_pacing_or_when_the_stream_has_ended() -> None:
    time = Timeline()
    pacer = Pacer(time.clock, time.wait)
    pacer.send(1e12)
    pacer.set_rate(0)
    pacer.close()
    pacer.send(1e12)
    assert time.now == 0


class Counting(Pacer):
    """Notes what leaves at which rate, and waits for none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []
        self.sent: list[tuple[float, float]] = []

    def set_rate(self, bits_per_second: float) -> None:
        """Notes the rate."""
        self.rates.append(bits_per_second)

    def send(self, bits: float) -> None:
        """Notes the message."""
        self.sent.append((bits, self.rates[-1]))


def test_a_device_sends_at_the_rate_of_its_share_and_channel(target: Target) -> None:
    """All of the band, at first, is its own; every byte that it counts went through the pacer."""
    pacer, decibels = Counting(), 10.0
    with serving(target, "fixed") as edge:
        device = edge.device(target, pacer=lambda: pacer, snr_db=lambda: decibels)
        done = device.write(text(3))
        device.close()
        band = edge.rounds.cell.band
    assert done.tokens == plain(target, text(3))
    whole = float(band.rate(from_db(decibels), np.float64(1.0)))
    drafts = pacer.sent[1:]
    assert len(drafts) > 2 and all(rate == pytest.approx(whole) for _, rate in drafts)
    assert sum(bits for bits, _ in pacer.sent) == 8 * done.up
