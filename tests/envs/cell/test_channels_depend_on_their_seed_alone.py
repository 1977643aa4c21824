"""Seeds fix channels, environments do not disturb each other, and reports are stale as asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from draftgym.envs.radio.channel import Channel, ChannelReport, FadingChannel
from draftgym.envs.radio.channel_trace import ChannelTrace, TraceChannel
from draftgym.envs.radio.radio import Band, mode_selection_radio, multispin_radio

TRACES = [
    ChannelTrace("rising", np.arange(5.0), np.arange(1.0, 6.0)),
    ChannelTrace("falling", np.arange(7.0) * 0.3, np.arange(70.0, 0.0, -10.0)),
]
MAKERS: dict[str, Callable[[tuple[int, ...]], Channel]] = {
    "fading": lambda shape: FadingChannel(replace(multispin_radio(17.5), doppler_hz=0.7), shape),
    "per hertz": lambda shape: FadingChannel(mode_selection_radio(), shape),
    "recorded": lambda shape: TraceChannel(TRACES, Band(10e6), shape),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[tuple[int, ...]], Channel]:
    return MAKERS[request.param]


def generators(seeds: Sequence[int]) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def history(channel: Channel, rng: np.random.Generator | list[np.random.Generator]) -> np.ndarray:
    channel.reset(rng)
    states = [channel.snr]
    for seconds in (0.1, 0.5, 1.3):
        channel.advance(rng, seconds)
        states.append(channel.snr)
    return np.array(states)


def test_the_same_seed_gives_the_same_channel(
    make: Callable[[tuple[int, ...]], Channel],
) -> None:
    one, same, other = (history(make((4, 3)), np.random.default_rng(s)) for s in (5, 5, 6))
    assert (one == same).all() and (one != other).any()
    assert one.shape == (4, 4, 3) and (one > 0).all()


def test_an_environment_alone_has_the_channel_that_it_has_among_others(
    make: Callable[[tuple[int, ...]], Channel],
) -> None:
    together = history(make((3, 4)), generators([7, 8, 9]))
    swapped = history(make((3, 4)), generators([9, 7, 8]))
    assert (swapped == together[:, [2, 0, 1]]).all()
    for row, seed in enumerate([7, 8, 9]):
        assert (history(make((1, 4)), generators([seed]))[:, 0] == together[:, row]).all()
        assert (history(make((4,)), np.random.default_rng(seed)) == together[:, row]).all()


def test_an_environment_that_begins_anew_leaves_the_others_alone(
    make: Callable[[tuple[int, ...]], Channel],
) -> None:
    calm, busy = make((2, 4)), make((2, 4))
    for channel in (calm, busy):
        channel.reset(own := generators([1, 2]))
        if channel is busy:
            channel.reset(own, np.array([[True], [False]]))
        channel.advance(own, 0.25)
    assert (calm.snr[1] == busy.snr[1]).all() and (calm.snr[0] != busy.snr[0]).any()


def test_only_who_joins_is_drawn_anew(make: Callable[[tuple[int, ...]], Channel]) -> None:
    channel, rng = make((2, 5)), np.random.default_rng(0)
    channel.reset(rng)
    before = channel.snr
    joined = np.zeros((2, 5), bool)
    joined[1, 3] = True
    channel.reset(rng, joined)
    assert (channel.snr == before)[~joined].all() and channel.snr[1, 3] != before[1, 3]


def test_who_else_joins_does_not_change_what_a_joining_user_draws() -> None:
    seen = []
    for joined in ([True, False, False], [True, True, False]):
        channel, rng = MAKERS["fading"]((3,)), np.random.default_rng(3)
        channel.reset(rng)
        channel.reset(rng, np.array(joined))
        channel.advance(rng, 0.1)
        seen.append(channel.snr)
    assert seen[0][0] == seen[1][0] and seen[0][2] == seen[1][2]


def test_reading_a_state_does_not_change_it(make: Callable[[tuple[int, ...]], Channel]) -> None:
    channel = make((3,))
    channel.reset(np.random.default_rng(0))
    channel.snr[:] = 0
    assert (channel.snr > 0).all()


def test_a_stale_report_shows_older_rounds() -> None:
    report, rng = ChannelReport(rounds_old=2), np.random.default_rng(0)
    seen = [report.take(rng, np.array([float(i), 10.0 * i])).tolist() for i in range(1, 6)]
    assert seen == [[1, 10], [1, 10], [1, 10], [2, 20], [3, 30]]
    now = ChannelReport()
    assert [now.take(rng, np.array([float(i)])).item() for i in range(3)] == [0, 1, 2]


def test_who_joins_is_seen_as_measured_on_joining() -> None:
    report, rng = ChannelReport(rounds_old=2), np.random.default_rng(0)
    for value in (1.0, 2.0, 3.0):
        report.take(rng, np.array([value, value]))
    joins = np.array([False, True])
    assert report.take(rng, np.array([4.0, 99.0]), joins).tolist() == [2, 99]
    assert report.take(rng, np.array([5.0, 98.0])).tolist() == [3, 99]


def test_errors_of_a_report_have_the_asked_spread_in_decibels_and_its_seed() -> None:
    snr = np.full((200, 500), 20.0)
    seen = ChannelReport(error_db=2.0).take(np.random.default_rng(0), snr)
    error = 10 * np.log10(seen / snr)
    assert error.mean() == pytest.approx(0.0, abs=0.03)
    assert error.std() == pytest.approx(2.0, rel=0.02)
    again = ChannelReport(error_db=2.0).take(np.random.default_rng(0), snr)
    assert (seen == again).all() and (snr == 20.0).all(), "the truth is left alone"
    with pytest.raises(ValueError, match="negative"):
        ChannelReport(-1)
