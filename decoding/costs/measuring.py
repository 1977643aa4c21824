"""Times pieces of rounds, breadth first, until a budget is spent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from statistics import median
from typing import TypeVar

from tqdm import tqdm

from draftgym.decoding.costs.timed_rounds import Round

Key = TypeVar("Key", bound=Hashable)
Clock = Callable[[], float]


def measure(
    rounds: Mapping[Key, Callable[[], Round]],
    coarse: Collection[Key],
    repeats: int,
    budget: float = float("inf"),
    clock: Clock | None = None,
) -> dict[Key, list[float]]:
    """Times the piece of each round.

    Every piece is timed once, behind a warm-up, before any is timed again: what drifts on the
    machine hits all alike, and whenever the budget ends, as much as can be is known of all.

    Args:
        rounds: Makes the round of each piece; called when it is first played.
        coarse: Pieces that are timed once whatever it takes; they come first.
        repeats: Most timings of a piece.
        budget: Seconds after which no other piece is begun.
        clock: Tells seconds, when all that was begun is done; by default the system's.

    Returns:
        Seconds of each piece, in order of time; empty where the budget ended before.
    """
    clock = clock or time.perf_counter
    order = [*(key for key in rounds if key in coarse), *(k for k in rounds if k not in coarse)]
    turns = [(turn, key) for turn in range(repeats) for key in order]
    made: dict[Key, Round] = {}
    seconds: dict[Key, list[float]] = {key: [] for key in rounds}
    limit = "" if budget == float("inf") else f" (at most about {budget:g} s)"
    pause = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log file wants few lines
    begun = clock()
    for turn, key in tqdm(turns, f"measuring{limit}", unit="piece", leave=False, mininterval=pause):
        if clock() - begun > budget and (turn or key not in coarse):
            break
        if key not in made:
            made[key] = rounds[key]()
            made[key]()()
        piece = made[key]()
        start = clock()
        piece()
        seconds[key].append(clock() - start)
    return seconds


def median_seconds(
    rounds: Mapping[Key, Round], repeats: int, clock: Clock | None = None
) -> dict[Key, float]:
    """The median time of each round's piece; see `measure`."""
    factories = {key: (lambda play=play: play) for key, play in rounds.items()}
    measured = measure(factories, rounds, repeats, clock=clock)
    return {key: median(times) for key, times in measured.items()}
