"""The relay: every IP packet between devices and server passes this process, on its link's terms.

It holds one end of each namespace's TUN device. Packets of a device go up its link, at its share of
the band (`SharedRate`), and on to the server; what the server sends goes down the link of whose
address it bears; nothing else goes anywhere. It is started by `draftgym.serving.edge.lab.network`,
which tells it `Config` in the first line of standard input, then `Command`s, a JSON object a line.
When standard input ends it tells `Link.counts` on standard output and ends, too.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from draftgym.serving.edge.lab.link import Air, FixedRate, Link, SharedRate, Steps

MOST_BYTES = 65535
"""Of a packet, and of a plan."""


@dataclass(frozen=True)
class Config:
    """What a relay is told at first.

    Attributes:
        server: File descriptor of the server's TUN device.
        devices: Those of the devices'.
        addresses: The devices' addresses.
        radio: File descriptor of the socket where plans come in.
        bands: Of each device, when (seconds) its channel's rate over the whole band changes, the
            rates in bits per second, and the period.
        least_bits: Bits per second that a device may send at any share.
        down_bits: Rate of each device's downlink; None for any.
        delay, jitter, loss: See `Air`; the same both ways.
        queue_bytes: What may wait at a link, each way.
        seed: Of loss and jitter.
    """

    server: int
    devices: Sequence[int]
    addresses: Sequence[str]
    radio: int
    bands: Sequence[tuple[Sequence[float], Sequence[float], float]]
    least_bits: float
    down_bits: float | None
    delay: float
    jitter: float
    loss: float
    queue_bytes: int
    seed: int


@dataclass
class Ends:
    """A device's link.

    Attributes:
        tun: Its TUN device.
        shared: The uplink's rate.
        up, down: The two directions.
    """

    tun: int
    shared: SharedRate
    up: Link
    down: Link


@dataclass
class Relay:
    """Carries packets.

    Args:
        config: What it was told.

    Attributes:
        ends: Links in the order of the devices.
    """

    config: Config
    ends: list[Ends] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        config = self.config
        air = Air(config.delay, config.jitter, config.loss)
        down_bits = math.inf if config.down_bits is None else config.down_bits
        for index, tun in enumerate(config.devices):
            shared = SharedRate(Steps(*config.bands[index]), 1.0, config.least_bits)
            links = [
                Link(rate, air, Random(f"{config.seed}-{way}-{index}"), config.queue_bytes)
                for way, rate in (("up", shared), ("down", FixedRate(down_bits)))
            ]
            self.ends.append(Ends(tun, shared, *links))
        self._by_address = {
            socket.inet_aton(one): end for one, end in zip(config.addresses, self.ends, strict=True)
        }

    def obey(self, command: Mapping[str, Any], now: float, offset: float) -> None:
        """Does what a line of standard input says.

        Args:
            command: `{"since": UNIX}`: channels begin anew; `{"cut": INDEX, "seconds": S}`: a
                link is down.
            now: Seconds of the relay's clock.
            offset: What the time of day is ahead of it.
        """
        if "since" in command:
            for index, end in enumerate(self.ends):
                end.up.advance(now)
                since = float(command["since"]) - offset
                end.shared.band = Steps(*self.config.bands[index], since)
        elif "cut" in command:
            end = self.ends[int(command["cut"])]
            for link in (end.up, end.down):
                link.cut(now, float(command["seconds"]))

    def divide(self, shares: Mapping[str, float], now: float) -> None:
        """A plan has come; who is not in it writes no text, and may send over the whole band."""
        for address, end in zip(self.config.addresses, self.ends, strict=True):
            end.up.advance(now)
            end.shared.share = min(1.0, max(0.0, float(shares.get(address, 1.0))))

    def accept(self, packet: bytes, source: Ends | None, now: float) -> None:
        """A packet has come from a device, or from the server (None)."""
        if packet[:1] and packet[0] >> 4 != 4:
            return  # the kernel's own, of IPv6
        if source is not None:
            source.up.put(packet, now)
        elif (end := self._by_address.get(packet[16:20])) is not None:
            end.down.put(packet, now)

    def deliver(self, now: float) -> None:
        """Hands out what has arrived."""
        for end in self.ends:
            for packet in end.up.take(now):
                _write(self.config.server, packet)
            for packet in end.down.take(now):
                _write(end.tun, packet)

    def due(self) -> float:
        """When there is something to do again."""
        return min(min(end.up.due(), end.down.due()) for end in self.ends)

    def counts(self) -> list[dict[str, Any]]:
        """What happened on each link."""
        return [{"up": asdict(end.up.counts), "down": asdict(end.down.counts)} for end in self.ends]


def run(relay: Relay) -> None:
    """Carries packets until standard input ends."""
    clock = time.monotonic
    selector = selectors.SelectSelector()  # others round waits up to milliseconds
    for tun, source in ((relay.config.server, None), *((end.tun, end) for end in relay.ends)):
        os.set_blocking(tun, False)
        selector.register(tun, selectors.EVENT_READ, source)
    plans = socket.socket(fileno=relay.config.radio)
    plans.setblocking(False)
    selector.register(plans, selectors.EVENT_READ)
    os.set_blocking(0, False)
    selector.register(0, selectors.EVENT_READ)
    lines = b""
    while True:
        wait = relay.due() - clock()
        for key, _ in selector.select(None if math.isinf(wait) else max(0.0, wait)):
            now = clock()
            if key.fd == 0:
                read = os.read(0, MOST_BYTES)
                if not read:
                    return
                *whole, lines = (lines + read).split(b"\n")
                for line in whole:
                    relay.obey(json.loads(line), now, time.time() - now)
            elif key.fileobj is plans:
                for plan in _all(plans.fileno()):
                    relay.divide(json.loads(plan), now)
            else:
                for packet in _all(key.fd):
                    relay.accept(packet, key.data, now)
        relay.deliver(clock())


def _all(descriptor: int) -> list[bytes]:
    """Whatever there is to read."""
    found = []
    with suppress(BlockingIOError):
        while read := os.read(descriptor, MOST_BYTES):
            found.append(read)
    return found


def _write(tun: int, packet: bytes) -> None:
    with suppress(OSError):  # its namespace is going down
        os.write(tun, packet)


def main() -> None:
    """Runs a relay as a process."""
    relay = Relay(Config(**json.loads(_line())))
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # it needs little, and delays must not depend on it
    run(relay)
    print(json.dumps(relay.counts()), flush=True)


def _line() -> bytes:
    """The first line; nothing behind it is read."""
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 1)
        if not read:
            sys.exit(1)
        line += read
    return line


if __name__ == "__main__":
    main()
