"""The devices' channels, drawn or recorded, as one file that everybody plays.

The file is an ordinary recording (`draftgym.envs.radio.channel_trace`), so an environment can play
the very same one.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.envs.cell.settings import edge_setting
from draftgym.envs.radio.channel import FadingChannel
from draftgym.envs.radio.channel_trace import ChannelTrace, read_channel_traces
from draftgym.envs.radio.radio import Band, Radio
from draftgym.serving.edge.devices.channel import DEAD
from draftgym.serving.edge.lab.args import EdgeLabArgs


def user_name(index: int) -> str:
    """What a device is called in the file."""
    return f"device-{index}"


def write_channels(args: EdgeLabArgs, path: Path) -> list[ChannelTrace]:
    """Writes the file.

    Args:
        args: What was asked for.
        path: The file.

    Returns:
        The devices' channels, as the file has them.

    Raises:
        DraftgymError: A recording cannot be read.
    """
    if args.channels is None:
        radio = edge_setting(args.setting).radio
        radio = replace(radio, band=Band(args.band_hertz))
        drawn = draw_channels(radio, args.devices, args.seconds, args.step_seconds, args.seed)
    else:
        recorded = read_channel_traces(args.channels, args.band_hertz)
        drawn = [recorded[i % len(recorded)] for i in range(args.devices)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "user", "snr_db"])
        for index, trace in enumerate(drawn):
            with np.errstate(divide="ignore"):
                decibels = np.maximum(10 * np.log10(trace.snr), DEAD)
            for second, value in zip(trace.seconds, decibels, strict=True):
                writer.writerow([f"{second:.6g}", user_name(index), f"{value:.3f}"])
    return read_channel_traces(path)


def draw_channels(
    radio: Radio, devices: int, seconds: float, step: float, seed: int
) -> list[ChannelTrace]:
    """Channels of a radio's law: mean gains stay, fading is drawn anew (or goes on) every step.

    Args:
        radio: The radio.
        devices: How many.
        seconds: How long.
        step: Seconds that a channel stays as it is.
        seed: The same seed draws the same channels.
    """
    rng, channel = np.random.default_rng(seed), FadingChannel(radio, (devices,))
    channel.reset(rng)
    steps = max(2, int(np.ceil(seconds / step)))
    moments: NDArray[np.float64] = step * np.arange(steps, dtype=np.float64)
    drawn = []
    for _ in moments:
        drawn.append(channel.snr)
        channel.advance(rng, step)
    whole: NDArray[np.float64] = np.array(drawn, np.float64)
    return [ChannelTrace(user_name(i), moments, snr) for i, snr in enumerate(whole.T)]


def relay_bands(traces: Sequence[ChannelTrace], hertz: float) -> list[Any]:
    """What a relay reads of channels; see `draftgym.serving.edge.lab.relay.Config.bands`."""
    band = Band(hertz)
    return [(one.seconds.tolist(), band.rate(one.snr, 1.0).tolist(), one.period) for one in traces]
