"""Recorded channels: signal-to-noise ratios or rates over time, from CSV files.

A file has a header and one row per moment, with the columns `seconds` (ascending), one of `snr_db`
(decibels) and `rate_bps` (bits per second), and, where it holds several recordings, `user` (any
name; rows of different users may alternate). Other columns are ignored:

    seconds,user,snr_db
    0,bus-1,12.5
    1,bus-1,9.0

A value holds until the next. A rate is what a whole bandwidth carried; divided by that bandwidth it
is a spectral efficiency, and the SNR that has this efficiency stands for it. That is exact over the
same bandwidth and an assumption over shares of it: rates say nothing about noise.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.radio.channel import Generators, chosen, uniform
from draftgym.envs.radio.radio import Band, from_db

FORMAT_REMEDY = "a row is `seconds,snr_db` or `seconds,rate_bps`, with `user` where there are many"
MAX_EFFICIENCY, MAX_DECIBELS = 100.0, 300.0
"""What no radio reaches: a rate or ratio beyond it was given in another unit."""


@dataclass(frozen=True)
class ChannelTrace:
    """One recording.

    Attributes:
        name: Its file, and its user where the file has several.
        seconds: When each value begins, ascending from 0, `[n]`.
        snr: Signal-to-noise ratios `[n]`.
    """

    name: str
    seconds: NDArray[np.float64]
    snr: NDArray[np.float64]

    @property
    def period(self) -> float:
        """Seconds it lasts; the last value is taken to last as long as the median one."""
        if len(self.seconds) == 1:
            return 1.0
        return float(self.seconds[-1] + np.median(np.diff(self.seconds)))


class TraceChannel:
    """Channels that were recorded: every user follows a random recording from a random moment on.

    A `draftgym.envs.radio.channel.Channel`; a recording that is over begins anew.

    Args:
        traces: Recordings.
        band: The band that the users share.
        shape: `(K,)`, or `(environments, K)`.

    Attributes:
        which: Index of each user's recording.
        elapsed: Seconds since its beginning.

    Raises:
        ValueError: No recordings.
    """

    def __init__(self, traces: Sequence[ChannelTrace], band: Band, shape: tuple[int, ...]) -> None:
        if not traces:
            raise ValueError("channels of no recordings")
        self.traces, self.band, self.shape = tuple(traces), band, tuple(shape)
        self._period = np.array([trace.period for trace in traces])
        # All traces one behind the other on one clock, so that one search finds all users' values.
        self._begin = np.concatenate([[0.0], np.cumsum(self._period)[:-1]])
        self._clock = np.concatenate(
            [begin + trace.seconds for begin, trace in zip(self._begin, traces, strict=True)]
        )
        self._snr = np.concatenate([trace.snr for trace in traces])
        ends = np.cumsum([len(trace.seconds) for trace in traces])
        self._first, self._last = np.concatenate([[0], ends[:-1]]), ends - 1
        self.which, self.elapsed = np.zeros(self.shape, np.int64), np.zeros(self.shape)

    @property
    def snr(self) -> NDArray[np.float64]:
        """Signal-to-noise ratios of this round `[..., K]`."""
        moment = self._begin[self.which] + np.mod(self.elapsed, self._period[self.which])
        index = np.searchsorted(self._clock, moment, "right") - 1
        index = np.clip(index, self._first[self.which], self._last[self.which])
        return np.asarray(self._snr[index])

    def reset(self, rng: Generators, where: NDArray[np.bool_] | None = None) -> None:
        """Puts new users in place of old ones; see `draftgym.envs.radio.channel.Channel`."""
        where, rows = chosen(where, self.shape)
        drawn = uniform(rng, (*self.shape, 2), rows)
        which = (drawn[..., 0] * len(self.traces)).astype(np.int64)
        self.which = np.where(where, which, self.which)
        self.elapsed = np.where(where, drawn[..., 1] * self._period[which], self.elapsed)

    def advance(self, rng: Generators, seconds: ArrayLike) -> None:
        """Lets time pass; see `draftgym.envs.radio.channel.Channel`."""
        self.elapsed = self.elapsed + np.asarray(seconds, float)[..., None]


def read_channel_traces(path: Path, rate_hertz: float | None = None) -> list[ChannelTrace]:
    """Reads the recordings of a file, in the order in which they begin.

    Args:
        path: A CSV file; the module tells its form.
        rate_hertz: Bandwidth over which rates were recorded; needed for `rate_bps` alone.

    Raises:
        DraftgymError: The file cannot be read, or a line (which is named) is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = _columns(path, next(reader, []), rate_hertz)
            numbered = ((reader.line_num, row) for row in reader)
            moments = _moments(path, numbered, columns)
    except (OSError, UnicodeDecodeError) as error:
        raise DraftgymError(f"{path}: {error}", "name a CSV file in UTF-8") from error
    except csv.Error as error:
        raise _bad(path, reader.line_num, str(error)) from error
    if not moments:
        raise DraftgymError(f"{path}: no rows below the header", FORMAT_REMEDY)
    traces = []
    for user, rows_of_user in moments.items():
        seconds, values = np.array(rows_of_user).T
        name = f"{path.name}:{user}" if user else path.name
        snr = from_db(values) if columns.rate_hertz is None else np.exp2(values) - 1
        traces.append(ChannelTrace(name, seconds - seconds[0], snr))
    return traces


@dataclass(frozen=True)
class _Columns:
    """Where a file keeps what is needed."""

    count: int
    seconds: int
    value: int
    user: int | None
    rate_hertz: float | None  # None: values are decibels


def _columns(path: Path, header: Sequence[str], rate_hertz: float | None) -> _Columns:
    names = [name.strip() for name in header]
    kinds = [kind for kind in ("snr_db", "rate_bps") if kind in names]
    if "seconds" not in names or len(kinds) != 1:
        raise DraftgymError(
            f"{path}, line 1: needs the column seconds and one of snr_db and rate_bps, has "
            f"{', '.join(names) or 'nothing'}",
            FORMAT_REMEDY,
        )
    rates = kinds == ["rate_bps"]
    if rates and not (rate_hertz and rate_hertz > 0):
        raise DraftgymError(
            f"{path} has rates, and the bandwidth they were recorded over is not known",
            "give the bandwidth in Hz (rate_hertz)",
        )
    return _Columns(
        len(names),
        names.index("seconds"),
        names.index(kinds[0]),
        names.index("user") if "user" in names else None,
        rate_hertz if rates else None,
    )


def _moments(
    path: Path, rows: Iterable[tuple[int, list[str]]], columns: _Columns
) -> dict[str, list[tuple[float, float]]]:
    """Per user, its moments with decibels or bits per second and hertz."""
    moments: dict[str, list[tuple[float, float]]] = {}
    for line, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != columns.count:
            raise _bad(path, line, f"{len(row)} cells instead of the header's {columns.count}")
        seconds = _number(path, line, row[columns.seconds])
        value = _value(path, line, row[columns.value], columns.rate_hertz)
        own = moments.setdefault("" if columns.user is None else row[columns.user].strip(), [])
        if own and seconds <= own[-1][0]:
            raise _bad(path, line, f"second {seconds:g} comes after second {own[-1][0]:g}")
        own.append((seconds, value))
    return moments


def _value(path: Path, line: int, text: str, rate_hertz: float | None) -> float:
    """Decibels, or bits per second and hertz of a rate."""
    value = _number(path, line, text)
    if rate_hertz is None:
        if abs(value) > MAX_DECIBELS:
            raise _bad(path, line, f"an SNR of {value:g} dB")
    elif not 0 <= (value := value / rate_hertz) <= MAX_EFFICIENCY:
        raise _bad(path, line, f"a rate of {value:g} bit/s per Hz")
    return value


def _number(path: Path, line: int, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _bad(path, line, f"{text.strip()!r} is not a number")
    return number


def _bad(path: Path, line: int, what: str) -> DraftgymError:
    return DraftgymError(f"{path}, line {line}: {what}", FORMAT_REMEDY)
