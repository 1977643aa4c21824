"""The channel that a device reports: a recording, by the time of day, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.radio.channel_trace import MAX_DECIBELS, ChannelTrace, read_channel_traces

DEAD = -MAX_DECIBELS
"""Decibels of no signal at all."""


class RecordedSnr:
    """Tells the SNR of the moment in decibels, as a modem does.

    Args:
        trace: The recording; it begins anew when it is over.
        since: When it begins, Unix seconds.
        clock: Unix seconds.
    """

    def __init__(
        self, trace: ChannelTrace, since: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._trace, self._since, self._clock = trace, since, clock
        with np.errstate(divide="ignore"):
            self._decibels = np.maximum(10.0 * np.log10(trace.snr), DEAD)

    def __call__(self) -> float:
        """Decibels."""
        moment = (self._clock() - self._since) % self._trace.period
        index = int(np.searchsorted(self._trace.seconds, moment, "right")) - 1
        return float(self._decibels[max(0, index)])


def find_trace(path: Path, user: str | None, rate_hertz: float | None = None) -> ChannelTrace:
    """A user's recording in a file.

    Args:
        path: The file; `draftgym.envs.radio.channel_trace` tells its form.
        user: Whose; None for the only one.
        rate_hertz: Bandwidth over which rates were recorded; of SNRs it is not read.

    Raises:
        DraftgymError: The file cannot be read, there is no such user, or none of several is named.
    """
    traces = read_channel_traces(path, rate_hertz)
    if user is None and len(traces) == 1:
        return traces[0]
    names = {one.name.partition(":")[2]: one for one in traces}
    if user not in names:
        asked = "several channels" if user is None else f"no channel of {user!r}"
        raise DraftgymError(
            f"{path} has {asked}", f"name one with --channel-user: {', '.join(sorted(names))}"
        )
    return names[user]
