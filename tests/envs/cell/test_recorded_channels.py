"""Channels read from CSV files: values, ends, and what is said of files that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.radio.channel_trace import ChannelTrace, TraceChannel, read_channel_traces
from draftgym.envs.radio.radio import Band

SNR = "seconds,snr_db\n0,0\n1,10\n2,20\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.csv"


def channel_of(path: Path) -> TraceChannel:
    """The channel of one user, at the beginning of its recording."""
    return TraceChannel(read_channel_traces(path), Band(10e6), (1,))


def walk(channel: TraceChannel, steps: list[float]) -> list[float]:
    values = [channel.snr.item()]
    for seconds in steps:
        channel.advance(np.random.default_rng(0), seconds)
        values.append(channel.snr.item())
    return values


def test_ratios_are_read_from_decibels(path: Path) -> None:
    path.write_text("cell,seconds,snr_db\nA,7.5,0\nA,8,10\n\nB,9,-10\n")
    [trace] = read_channel_traces(path)
    assert trace.name == "bus.csv" and trace.seconds.tolist() == [0, 0.5, 1.5]
    assert trace.snr == pytest.approx([1, 10, 0.1])
    assert trace.period == 1.5 + 0.75


def test_rates_become_ratios_of_the_same_efficiency(path: Path) -> None:
    path.write_text("\ufeffseconds, rate_bps\n0,2e6\n1,0\n")
    [trace] = read_channel_traces(path, rate_hertz=1e6)
    assert trace.snr.tolist() == [3, 0]
    assert Band(1e6).rate(trace.snr, 1.0) == pytest.approx([2e6, 0])


def test_users_of_a_file_are_traces_of_their_own(path: Path) -> None:
    path.write_text("user,seconds,snr_db\nb,0,1\na,5,2\nb,1,3\na,6,4\n")
    traces = read_channel_traces(path)
    assert [trace.name for trace in traces] == ["bus.csv:b", "bus.csv:a"]
    assert [trace.seconds.tolist() for trace in traces] == [[0, 1], [0, 1]]


def test_a_value_holds_until_the_next_and_traces_wrap_around(path: Path) -> None:
    path.write_text(SNR)
    channel = channel_of(path)
    assert walk(channel, [0.9, 0.2, 1.0, 0.8, 0.2]) == pytest.approx([1, 1, 10, 100, 100, 1])


def test_one_row_is_a_channel_that_never_changes(path: Path) -> None:
    path.write_text("seconds,snr_db\n3,10\n")
    assert walk(channel_of(path), [0.4, 7.0]) == pytest.approx([10, 10, 10])


def test_many_users_follow_random_traces_from_random_moments() -> None:
    steps = np.arange(100.0)
    traces = [ChannelTrace("one", steps, 1 + steps), ChannelTrace("two", steps, 1000 + steps)]
    channel = TraceChannel(traces, Band(1e6), (50, 40))
    channel.reset(np.random.default_rng(0))
    first = channel.snr
    assert (channel.which == (first >= 1000)).all()
    assert (first >= 1000).mean() == pytest.approx(0.5, abs=0.05)
    assert np.unique(first).size > 190
    channel.advance(np.random.default_rng(0), np.repeat([1.0, 100.0], 25))
    moved = channel.snr - first
    assert np.isin(moved[:25], [1, -99]).all() and (moved[25:] == 0).all()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: needs the column seconds.*has nothing"),
        ("time,snr\n0,1\n", "line 1: needs the column seconds.*has time, snr"),
        ("seconds,snr_db,rate_bps\n0,1,1\n", "line 1: needs"),
        ("seconds,snr_db\n", "no rows below the header"),
        ("seconds,snr_db\n0,1\n\n1,ten\n", "line 4: 'ten' is not a number"),
        ("seconds,snr_db\n0,nan\n", "line 2: 'nan' is not a number"),
        ("seconds,snr_db\n,3\n", "line 2: '' is not a number"),
        ("seconds,snr_db\n0,1\n1,1,5\n", "line 3: 3 cells instead of the header's 2"),
        ("seconds,snr_db\n0,1\n2,1\n2,3\n", "line 4: second 2 comes after second 2"),
        ("seconds,snr_db\n0,1e5\n", "line 2: an SNR of 100000 dB"),
        ('"seconds,snr_db\n', "line 1: unexpected end"),
        ('seconds,snr_db\n0,"1\n', "line 2: unexpected end"),
    ],
)
def test_a_wrong_line_is_named(path: Path, text: str, problem: str) -> None:
    path.write_text(text)
    with pytest.raises(DraftgymError, match=problem) as caught:
        read_channel_traces(path)
    assert str(path) in caught.value.problem and "seconds" in caught.value.remedy


def test_rates_need_a_bandwidth_and_its_unit(path: Path) -> None:
    path.write_text("seconds,rate_bps\n0,1e6\n1,-3\n")
    with pytest.raises(DraftgymError, match="bandwidth") as caught:
        read_channel_traces(path)
    assert "rate_hertz" in caught.value.remedy
    with pytest.raises(DraftgymError, match="line 3: a rate of -3e-06"):
        read_channel_traces(path, rate_hertz=1.0e6)
    with pytest.raises(DraftgymError, match="line 2: a rate of 100000 bit"):
        read_channel_traces(path, rate_hertz=10.0)


def test_files_that_cannot_be_read_are_named(path: Path) -> None:
    with pytest.raises(DraftgymError, match=r"bus\.csv"):
        read_channel_traces(path)
    path.write_bytes(b"seconds,snr_db\n0,\xff\n")
    with pytest.raises(DraftgymError, match="UTF-8"):
        read_channel_traces(path)


def test_programmers_get_value_errors() -> None:
    with pytest.raises(ValueError, match="no recordings"):
        TraceChannel([], Band(1e6), (1,))


def test_cells_of_the_command_line_follow_recordings(path: Path) -> None:
    path.write_text("seconds,snr_db\n0,10\n5,0\n")
    settings = CellArgs(users=3, channels=(path,)).settings()
    channel = settings.make_channel(2)
    assert isinstance(channel, TraceChannel)
    channel.reset(np.random.default_rng(0))
    assert set(np.round(channel.snr, 9).ravel().tolist()) <= {10.0, 1.0}
    with pytest.raises(DraftgymError, match="nowhere"):
        CellArgs(channels=(path.with_name("nowhere.csv"),)).settings()
