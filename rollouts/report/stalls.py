"""Where the machine stood still: rounds that took far longer than others of their kind.

A neighbour on the machine can hold a process for a minute, and a ratio of totals then tells of that
minute. Nothing is dropped for it: the text is named, with the seconds, and medians of single
prompts stand beside the totals.

A round is judged beside all rounds of the same arm that drafted as many tokens, whoever chose them
and in whatever text; its catching up apart, beside that of the same drafter by so many positions
(to a power of two). It stood still where it took more than `TIMES` their median and more than the
median and `SPREADS` times their spread (1.4826 times the median absolute deviation, which is a
normal distribution's standard deviation, and which no stall moves).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.decoder import DecodedRound
from draftgym.rollouts.decode.interleaved import DecodedText

TIMES, SPREADS = 5.0, 10.0
SHARE = 0.05
"""Part of a text's time that must be lost before the text is named."""
FEW = 8
"""Rounds that tell what is usual, at least."""

Kind = tuple[str, ...]


@dataclass(frozen=True)
class Stall:
    """A text at which the machine stood still.

    Attributes:
        policy: Who wrote it.
        question_id: Its prompt.
        rounds: In how many of its rounds.
        seconds: By how much these rounds took longer than is usual.
    """

    policy: str
    question_id: str
    rounds: int
    seconds: float


def find_stalls(texts: Sequence[DecodedText]) -> list[Stall]:
    """The texts whose rounds leave their own distribution, in the order of `texts`."""
    parts = [_parts(item) for text in texts for item in text.generation.rounds]
    lost = np.sum([_lost(parts, column) for column in (0, 1)], axis=0) if parts else np.zeros(0)
    stalls, start = [], 0
    for text in texts:
        mine = lost[start : start + len(text.generation.rounds)]
        start += len(mine)
        seconds = float(mine.sum())
        if seconds > SHARE * text.generation.decode_seconds:
            count = int((mine > seconds / 100).sum())
            stalls.append(Stall(text.policy, text.prompt.question_id, count, seconds))
    return stalls


def stood_still(values: NDArray[np.float64], times: float = TIMES) -> NDArray[np.bool_]:
    """Which of some values that should be alike are far above the others."""
    median = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - median))
    return np.asarray(values > max(times * median, median + SPREADS * spread))


def stalls_told(stalls: Sequence[Stall]) -> list[str]:
    """A line for each, to stand below a table."""
    return [
        f"{one.policy}: {one.question_id} stood still for {one.seconds:.1f} s in {one.rounds} "
        f"round{'s' if one.rounds > 1 else ''}: totals count it, medians do not"
        for one in stalls
    ]


def _parts(item: DecodedRound) -> tuple[tuple[Kind, float], tuple[Kind, float]]:
    """A round's two parts with their kinds: catching up, and all else."""
    record, times = item.record, item.record.times
    rest = item.decide_seconds + times.total - times.catch_up
    arm, missed = record.arm, record.caught_up.bit_length()
    return (
        (("catch up", arm.drafter, str(missed)), times.catch_up),
        ((str(arm), str(len(record.drafted))), rest),
    )


def _lost(
    parts: Sequence[tuple[tuple[Kind, float], tuple[Kind, float]]], column: int
) -> NDArray[np.float64]:
    """Seconds beyond the usual of one part of every round; 0 where it is as usual `[rounds]`."""
    seconds = np.array([part[column][1] for part in parts])
    kinds = [part[column][0] for part in parts]
    groups: defaultdict[Kind, list[int]] = defaultdict(list)
    for index, kind in enumerate(kinds):
        groups[kind].append(index)
    if column:  # the rare numbers of tokens of an arm are judged by all its rounds
        arms: defaultdict[Kind, list[int]] = defaultdict(list)
        for index, kind in enumerate(kinds):
            arms[kind[:1]].append(index)
    lost = np.zeros(len(parts))
    for kind, indices in groups.items():
        alike = indices if len(indices) >= FEW or not column else arms[kind[:1]]
        if len(alike) >= FEW:
            outside = np.array(indices)[stood_still(seconds[alike])[np.isin(alike, indices)]]
            lost[outside] = seconds[outside] - np.median(seconds[alike])
    return lost
