"""When requests arrive: at once, by chance, in bursts, or as they were recorded.

What arrives depends on the seed alone, never on how it is served, so that policies can be compared
request by request.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError

Floats = NDArray[np.float64]


class Arrivals(Protocol):
    """Whatever says when requests come."""

    def times(self, rng: np.random.Generator, count: int) -> Floats:
        """Ascending seconds at which so many requests arrive `[count]`; the first at 0 or later."""


@dataclass(frozen=True)
class AtOnce:
    """All requests are there from the beginning: a server that is never short of work."""

    def times(self, rng: np.random.Generator, count: int) -> Floats:
        """See `Arrivals`."""
        return np.zeros(count)


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals.

    Attributes:
        rate: Requests per second.

    Raises:
        DraftgymError: It is not a number above 0.
    """

    rate: float

    def __post_init__(self) -> None:
        _check_positive("rate", self.rate)

    def times(self, rng: np.random.Generator, count: int) -> Floats:
        """See `Arrivals`."""
        return rng.exponential(1 / self.rate, count).cumsum()


@dataclass(frozen=True)
class Bursts:
    """Quiet and busy spells in turn, of random length, with Poisson arrivals in each.

    The mean rate is that of both spells, weighted by how long they last.

    Attributes:
        busy_rate: Requests per second in busy spells.
        quiet_rate: The same in quiet ones, 0 or more.
        busy_seconds: Mean length of a busy spell.
        quiet_seconds: Mean length of a quiet one.

    Raises:
        DraftgymError: A number is impossible.
    """

    busy_rate: float
    quiet_rate: float = 0.0
    busy_seconds: float = 5.0
    quiet_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in ("busy_rate", "busy_seconds", "quiet_seconds"):
            _check_positive(name, getattr(self, name))
        if not 0 <= self.quiet_rate < np.inf:
            raise DraftgymError(f"a quiet_rate of {self.quiet_rate}", "give 0 or more")

    @property
    def mean_rate(self) -> float:
        """Requests per second in the long run."""
        busy, quiet = self.busy_rate * self.busy_seconds, self.quiet_rate * self.quiet_seconds
        return (busy + quiet) / (self.busy_seconds + self.quiet_seconds)

    def times(self, rng: np.random.Generator, count: int) -> Floats:
        """See `Arrivals`. Who begins in which spell is drawn by how long spells last."""
        busy = rng.uniform() * (self.busy_seconds + self.quiet_seconds) < self.busy_seconds
        found, start = np.zeros(0), 0.0
        while len(found) < count:
            rate = self.busy_rate if busy else self.quiet_rate
            length = rng.exponential(self.busy_seconds if busy else self.quiet_seconds)
            within = rng.uniform(size=rng.poisson(rate * length))
            found = np.append(found, start + np.sort(within) * length)
            start, busy = start + length, not busy
        return found[:count]


@dataclass(frozen=True)
class Recorded:
    """Arrivals as somebody recorded them; each episode begins at a random request of them.

    Behind the last request the record begins again, a mean gap later.

    Attributes:
        at: Seconds, ascending.
        speed: How many times as fast they come as they did.

    Raises:
        DraftgymError: Fewer than two times, times that do not ascend, or an impossible speed.
    """

    at: tuple[float, ...]
    speed: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("speed", self.speed)
        times = np.asarray(self.at, float)
        if len(times) < 2 or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise DraftgymError(
                f"{len(times)} recorded arrivals that do not ascend, or too few of them",
                "give two times at least, in seconds, sorted",
            )

    def times(self, rng: np.random.Generator, count: int) -> Floats:
        """See `Arrivals`."""
        at = np.asarray(self.at, float)
        gaps = np.append(np.diff(at), (at[-1] - at[0]) / (len(at) - 1))
        first = int(rng.integers(len(at)))
        following = np.resize(np.roll(gaps, -first), count)
        return np.asarray((following.cumsum() - following) / self.speed)


def read_arrivals(path: Path, column: str = "timestamp", speed: float = 1.0) -> Recorded:
    """Reads recorded times: a JSON list of seconds, or a CSV file with a column of them.

    Published traces of services (BurstGPT's, for one) are such CSV files. Times are sorted; where
    the record begins does not matter.

    Args:
        path: `.json` or `.csv`.
        column: Name of the column of a CSV file; case does not matter.
        speed: See `Recorded`.

    Raises:
        DraftgymError: The file cannot be read, or holds no such times.
    """
    remedy = "give a JSON list of seconds, or a CSV file with a header and a column of them"
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else _column(text, column)
        times = sorted(float(one) for one in found)
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise DraftgymError(f"{path}: {error}", remedy) from error
    return Recorded(tuple(times), speed)


def _column(text: str, column: str) -> Sequence[str]:
    rows = csv.DictReader(text.splitlines())
    known = {name.strip().lower(): name for name in rows.fieldnames or []}
    if column.lower() not in known:
        raise KeyError(f"no column {column!r} among {', '.join(known) or 'none'}")
    return [row[known[column.lower()]] for row in rows]


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise DraftgymError(f"arrivals with {name} {value}", "give a number above 0")
