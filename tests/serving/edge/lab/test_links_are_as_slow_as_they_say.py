"""A link's rate, queue, delay and loss, by a clock that the test sets."""

from __future__ import annotations

import json
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftgym.envs.radio.channel_trace import read_channel_traces
from draftgym.serving.edge.devices.channel import RecordedSnr, find_trace
from draftgym.serving.edge.lab.args import EdgeLabArgs
from draftgym.serving.edge.lab.channels import relay_bands, user_name, write_channels
from draftgym.serving.edge.lab.link import Air, FixedRate, Link, SharedRate, Steps
from draftgym.serving.edge.lab.relay import Config, Relay

AIR = Air()
ROOM = 10**6


def arrivals(link: Link, until: float, step: float = 0.001) -> list[float]:
    """When packets arrive, as somebody sees who looks every millisecond."""
    times = []
    for tick in range(round(until / step) + 1):
        times += [tick * step] * len(link.take(tick * step))
    return times


def test_packets_leave_at_the_rate_one_behind_the_other() -> None:
    link = Link(FixedRate(8000.0), AIR, Random(0), ROOM)
    for _ in range(3):
        link.put(bytes(500), 0.0)
    assert arrivals(link, 2.0) == pytest.approx([0.5, 1.0, 1.5], abs=0.002)
    link.put(bytes(500), 9.0)
    assert link.due() == pytest.approx(9.5), "an idle link has saved nothing up"


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=6))
def test_what_was_sent_counts_when_shares_change(plans: list[tuple[float, float]]) -> None:
    rate = SharedRate(Steps([0.0], [8000.0], 1.0), 0.5)
    link, now, sent = Link(rate, AIR, Random(0), ROOM), 0.0, 0.0
    link.put(bytes(1000), now)
    for seconds, share in plans:
        link.advance(now)
        sent += seconds * 8000.0 * share
        now, rate.share = now + seconds, share
        link.advance(now)
    # The bits that the plans have let through, and not one more, are gone.
    rate.share = 1.0
    assert bool(link.take(now)) == (sent >= 8000.0) or math.isclose(sent, 8000.0)
    if sent < 8000.0:
        assert link.due() <= now + (8000.0 - sent) / 8000.0 + 1e-9
        assert len(link.take(now + (8000.0 - sent) / 8000.0 + 1e-6)) == 1


def test_the_rate_follows_the_channel_and_begins_anew() -> None:
    band = Steps([0.0, 1.0], [8000.0, 0.0], 2.0, since=10.0)
    assert [band.at(t) for t in (10.0, 10.9, 11.1, 12.5, 9.5)] == [8000, 8000, 0, 8000, 0]
    link = Link(SharedRate(band, 1.0), AIR, Random(0), ROOM)
    link.put(bytes(1500), 10.0)
    assert not link.take(12.4), "a second at the rate, a second of nothing, half a second more"
    assert len(link.take(12.5 + 1e-3)) == 1


def test_a_device_without_a_share_still_has_its_control_channel() -> None:
    link = Link(SharedRate(Steps([0.0], [1e6], 1.0), 0.0, least=800.0), AIR, Random(0), ROOM)
    link.put(bytes(100), 0.0)
    assert link.due() == pytest.approx(1.0)


def test_a_full_queue_drops_what_comes_last() -> None:
    link = Link(FixedRate(8.0), AIR, Random(0), 1000)
    for size in (600, 600, 300):
        link.put(bytes(size), 0.0)
    assert link.counts.dropped == 1
    assert [len(one) for one in link.take(1e6)] == [600, 300]
    link.put(bytes(1000), 1e6)
    assert link.counts.dropped == 1, "there is room again"


def test_delay_and_jitter_keep_the_order() -> None:
    link = Link(FixedRate(), Air(delay=0.1, jitter=0.05), Random(3), ROOM)
    for number in range(200):
        link.put(bytes([number]), 0.001 * number)
    assert not link.take(0.0499)
    assert [one[0] for one in link.take(0.199 + 0.1501)] == list(range(200))


def test_loss_is_the_seeds_and_a_cut_link_loses_everything() -> None:
    def lost(seed: int) -> int:
        link = Link(FixedRate(), Air(loss=0.25), Random(seed), ROOM)
        for _ in range(1000):
            link.put(b"x", 0.0)
        return link.counts.lost

    assert lost(1) == lost(1) != lost(2)
    assert 150 < lost(1) < 350
    link = Link(FixedRate(), AIR, Random(0), ROOM)
    link.cut(5.0, 2.0)
    for second in (4.0, 5.5, 6.9, 7.1):
        link.put(b"x", max(5.0, second))
    assert (link.counts.lost, link.counts.packets) == (3, 1)


def relay(**changes: object) -> Relay:
    facts = {
        "server": -1, "devices": [-2, -3], "addresses": ["10.77.1.1", "10.77.1.2"], "radio": -4,
        "bands": [([0.0], [8000.0], 1e9)] * 2, "least_bits": 0.0, "down_bits": None, "delay": 0.0,
        "jitter": 0.0, "loss": 0.0, "queue_bytes": ROOM, "seed": 0,
    }  # fmt: skip
    return Relay(Config(**json.loads(json.dumps(facts | changes))))


def packet(destination: str, size: int) -> bytes:
    """An IPv4 packet, as far as a relay reads it."""
    address = bytes(int(part) for part in destination.split("."))
    return bytes([0x45]) + bytes(15) + address + bytes(size - 20)


def test_a_relay_carries_packets_to_whom_they_bear_and_divides_the_band() -> None:
    one = relay()
    first, second = one.ends
    one.divide({"10.77.1.1": 0.25}, 0.0)
    for end in one.ends:
        one.accept(packet("10.77.0.1", 1000), end, 0.0)
    assert (first.up.due(), second.up.due()) == (4.0, 1.0), "who is in no plan has the whole band"
    one.accept(packet("10.77.1.2", 100), None, 0.0)
    one.accept(packet("10.9.9.9", 100), None, 0.0)
    one.accept(b"\x60" + bytes(60), first, 0.0)
    assert (len(first.down.take(1.0)), len(second.down.take(1.0))) == (0, 1)
    one.divide({"10.77.1.1": 1.0, "10.77.1.2": 0.0}, 2.0)
    assert first.up.due() == pytest.approx(2.5), "half of it was sent in two seconds"
    assert len(second.up.take(2.0)) == 1


def test_devices_and_relay_play_the_same_recording(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "channels.csv"
    args = EdgeLabArgs(devices=3, seconds=4.0, step_seconds=0.5, band_hertz=1e6)
    traces = write_channels(args, path)
    assert [len(one.seconds) for one in traces] == [8, 8, 8]
    assert write_channels(args, path)[1].snr.tolist() == traces[1].snr.tolist(), "seeded"
    bands = relay_bands(traces, args.band_hertz)
    now = [100.0]
    reported = RecordedSnr(find_trace(path, user_name(1)), 100.0, lambda: now[0])
    for now[0] in (100.0, 101.3, 103.9, 104.2):
        rate = Steps(*bands[1], since=100.0).at(now[0])
        assert rate == pytest.approx(1e6 * math.log2(1 + 10 ** (reported() / 10)))
    assert len(read_channel_traces(path)) == 3, "an environment can play it, too"
