"""What a switch costs: catching up a backlog, beside a whole round of the same arm."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.calibration import fitting_contexts, random_session
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round, verify_batch
from draftgym.decoding.session import Session
from draftgym.decoding.verify.proposal import Proposal

PREFILLS = {"kv": False, "full": True}
"""What `full` is in each variant."""


@dataclass(frozen=True)
class Spread:
    """Percentiles of repeated timings."""

    p10: float
    p50: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float], scale: float = 1.0) -> Spread:
        """Those of `values`, each multiplied by `scale`."""
        p10, p50, p90 = (np.percentile(values, [10, 50, 90]) * scale).tolist()
        return cls(p10, p50, p90)


@dataclass(frozen=True)
class SwitchCost:
    """One cell of the grid.

    Attributes:
        arm: Whose drafter catches up.
        prefill: `kv` or `full`.
        context: Positions that the drafter knew in the first repetition, once it had caught up;
            every repetition adds the tokens of one round.
        backlog: How many of them it missed.
        switch_ms: Catching up, milliseconds.
        round_ms: A whole round of the arm at this context without any backlog, milliseconds.
        share: `switch_ms` over the median of `round_ms`.
    """

    arm: str
    prefill: str
    context: int
    backlog: int
    switch_ms: Spread
    round_ms: Spread
    share: Spread


def measure_switches(
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    contexts: Sequence[int],
    backlogs: Sequence[int],
    repeats: int,
) -> list[SwitchCost]:
    """Times every cell with `backlog <= context`; the first of all repeats is a warm-up.

    Args:
        target: The target.
        drafters: Drafters by name.
        arms: Arms whose drafter keeps keys and values.
        contexts: Context lengths; those that do not fit the target are shortened.
        backlogs: Positions to catch up.
        repeats: Timings per cell.

    Raises:
        DraftgymError: An arm of a drafter without keys and values.
    """
    used = {arm.drafter: drafters[arm.drafter] for arm in arms if arm.drafts}
    endless = replace(target, stop_tokens=frozenset())  # random texts shall not end by chance
    room = (repeats + 2) * (1 + max(arm.length for arm in arms))
    contexts = fitting_contexts(target, used, contexts, room + 1)
    cells: list[SwitchCost] = []
    for context in tqdm(contexts, desc="contexts", unit="context"):
        fitting = [backlog for backlog in backlogs if backlog <= context]
        # One more token than the context: every drafter then knows at least `context` positions.
        sessions = {arm: random_session(endless, used, context + 1, room) for arm in arms}
        switches: dict[tuple[Arm, str, int], list[float]] = {}
        rounds: dict[Arm, list[float]] = {arm: [] for arm in arms}
        for repeat in range(repeats + 1):
            for arm, session in sessions.items():
                seconds = _round_seconds(session, arm)
                timed = dict(_switch_seconds(session, arm, fitting))
                if repeat:
                    rounds[arm].append(seconds)
                    for (prefill, backlog), value in timed.items():
                        switches.setdefault((arm, prefill, backlog), []).append(value)
        cells += [
            _cell(arm, prefill, context, backlog, seconds, rounds[arm])
            for (arm, prefill, backlog), seconds in switches.items()
        ]
    return cells


def _round_seconds(session: Session, arm: Arm) -> float:
    """A whole round of the arm without any backlog."""
    session.catch_up(session.drafters[arm.drafter])
    record = play_round(session, arm)
    assert not record.caught_up and not session.finished
    return record.times.total


def _switch_seconds(
    session: Session, arm: Arm, backlogs: Sequence[int]
) -> Iterator[tuple[tuple[str, int], float]]:
    """Seconds of catching up, by prefill and backlog."""
    drafter = session.drafters[arm.drafter]
    session.catch_up(drafter)
    state = session.state_of(drafter)
    cache = getattr(state, "cache", None)
    if cache is None:
        raise DraftgymError(
            f"the drafter of arm {str(arm)!r} keeps no keys and values",
            "name arms of neural drafters with --arms",
        )
    known = cache.length
    for backlog in backlogs:
        for prefill, full in PREFILLS.items():
            cache.roll_back(known - backlog)
            # A switch follows a target pass, which has driven the drafter's weights out of the
            # processor's caches; nothing is committed.
            verify_batch([session], [Proposal.empty()])
            start = time.perf_counter()
            encoded = drafter.catch_up(state, session, full)
            seconds = time.perf_counter() - start
            assert encoded == backlog
            yield (prefill, backlog), seconds


def _cell(
    arm: Arm,
    prefill: str,
    context: int,
    backlog: int,
    switch: Sequence[float],
    rounds: Sequence[float],
) -> SwitchCost:
    share = Spread.of(switch, 1 / float(np.median(rounds)))
    switch_ms, round_ms = Spread.of(switch, 1e3), Spread.of(rounds, 1e3)
    return SwitchCost(str(arm), prefill, context, backlog, switch_ms, round_ms, share)


def worst_shares(cells: Sequence[SwitchCost]) -> dict[str, Any]:
    """Per arm and prefill, the largest median share of the grid."""
    worst: dict[str, float] = {}
    for cell in cells:
        key = f"{cell.arm} {cell.prefill}"
        worst[key] = max(worst.get(key, 0.0), cell.share.p50)
    return worst
