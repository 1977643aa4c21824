"""What a switch costs: catching up a backlog, beside a whole round of the same arm (WhiFlash).

    $ python -m benchmarks.system.switch_cost --dtype float32 --json runs/switch_cost.json

A drafter that was not used has a *backlog*: positions that it must encode before it can draft. Per
arm, context and backlog this times catching up, as a share of a whole round of that arm (drafting,
verifying, committing) at that context without any backlog. The backlog is part of the context.
Every timing follows a target pass, as in decoding; all are interleaved. `kv` encodes keys and
values alone, `full` runs the whole drafter on the backlog. dflash never takes context positions as
rows, so that its `full` is the same work as its `kv`. What both save in decoding is measured by
`benchmarks.system.catch_up`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.report import Json, Table, titled
from benchmarks.results import Result, TargetOptions, check, finish
from draftgym.decoding.arms import Arm, check_arms, parse_arm
from draftgym.decoding.costs.pieces import fitting_contexts, random_session
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import play_round, verify_batch
from draftgym.decoding.session import Session
from draftgym.decoding.verify.proposal import Proposal

PREFILLS = {"kv": False, "full": True}
"""What `full` is in each variant."""


@dataclass(frozen=True, kw_only=True)
class SwitchCostArgs(TargetOptions):
    """What to measure.

    Attributes:
        arms: Arms whose switch cost is measured (neural drafters).
        contexts: Context lengths; shortened where the target's limit is lower.
        backlogs: Positions to catch up; those longer than a context are left out there.
        repeats: Timings per cell.
        dtype: auto, float32, bfloat16 or float16.
        json: Write the figures to this file.
    """

    arms: tuple[str, ...] = ("eagle3:2", "dflash:2", "small:2")
    contexts: tuple[int, ...] = (128, 512, 2048)
    backlogs: tuple[int, ...] = (1, 16, 64, 128, 512)
    repeats: int = 15
    dtype: str = "auto"
    json: Path | None = None


def measure(args: SwitchCostArgs) -> Result:
    """Measures, shows and writes the figures.

    Raises:
        DraftgymError: Bad settings.
    """
    check(args, "repeats")
    for name in ("contexts", "backlogs"):
        if not (values := getattr(args, name)) or min(values) < 1:
            raise DraftgymError(f"--{name} has no positive number", "write some, as in 16 128")
    target, drafters = args.load(args.dtype)
    arms = [*dict.fromkeys(map(parse_arm, args.arms))]
    check_arms(arms, drafters)
    cells = measure_switches(target, drafters, arms, args.contexts, args.backlogs, args.repeats)
    shares = worst_shares(cells)
    figures = {"switch_cost": cells, "largest_median_shares": shares}
    return finish(tables, args, figures, target, drafters)


def measure_switches(
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    contexts: Sequence[int],
    backlogs: Sequence[int],
    repeats: int,
) -> list[Result]:
    """Times every cell with `backlog <= context`; the first of all repeats is a warm-up.

    Returns:
        Cells. `context` is how many positions the drafter knew in the first repetition, once it had
        caught up (every repetition adds the tokens of one round), `backlog` how many of them it
        missed. Percentiles of repeats: `switch_ms` catching up, `round_ms` a whole round of the arm
        at this context without any backlog, `share` the first over the median of the second.

    Raises:
        DraftgymError: An arm of a drafter without keys and values.
    """
    used = {arm.drafter: drafters[arm.drafter] for arm in arms if arm.drafts}
    endless = replace(target, stop_tokens=frozenset())  # random texts shall not end by chance
    room = (repeats + 2) * (1 + max(arm.length for arm in arms))
    contexts = fitting_contexts(target, used, contexts, room + 1)
    cells: list[Result] = []
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
        for (arm, prefill, backlog), times in switches.items():
            cell: Result = {
                "arm": str(arm),
                "prefill": prefill,
                "context": context,
                "backlog": backlog,
            }
            cell["switch_ms"] = _spread(times, 1e3)
            cell["round_ms"] = _spread(rounds[arm], 1e3)
            cell["share"] = _spread(times, 1 / float(np.median(rounds[arm])))
            cells.append(cell)
    return cells


def _spread(values: Sequence[float], scale: float) -> dict[str, float]:
    p10, p50, p90 = (np.percentile(values, [10, 50, 90]) * scale).tolist()
    return {"p10": p10, "p50": p50, "p90": p90}


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
    cache = session.state_of(drafter)
    if not isinstance(cache, KVCache):
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
            encoded = drafter.catch_up(cache, session, full)
            seconds = time.perf_counter() - start
            assert encoded == backlog
            yield (prefill, backlog), seconds


def worst_shares(cells: Sequence[Json]) -> dict[str, float]:
    """Per arm and prefill, the largest median share of the grid."""
    worst: dict[str, float] = {}
    for cell in cells:
        key = f"{cell['arm']} {cell['prefill']}"
        worst[key] = max(worst.get(key, 0.0), cell["share"]["p50"])
    return worst


def tables(result: Json) -> list[Table]:
    """Shares of a round: a row per arm, prefill and context, a column per backlog."""
    title = (
        "switch cost by backlog: catching up, % of a round's time (p10-p90)\n"
        "{target}, {dtype}, threads {threads}; {machine}"
    ).format(**titled(result))
    cells = result["switch_cost"]
    backlogs = sorted({cell["backlog"] for cell in cells})
    rows: dict[tuple[str, str, int], dict[int, Json]] = {}
    for cell in cells:
        key = (cell["arm"], cell["prefill"], cell["context"])
        rows.setdefault(key, {})[cell["backlog"]] = cell
    lines = []
    for (arm, prefill, context), row in sorted(rows.items()):
        shares = [_told(row[one]["share"]) if one in row else "" for one in backlogs]
        whole = next(iter(row.values()))["round_ms"]
        spread = f"{whole['p50']:.1f} ({whole['p10']:.0f}-{whole['p90']:.0f})"
        lines.append([arm, prefill, str(context), spread, *shares])
    return [Table(title, ["arm", "prefill", "context", "round ms", *map(str, backlogs)], lines)]


def _told(share: Json) -> str:
    median, low, high = (
        f"{100 * share[key]:.1f}" if share[key] < 0.1 else f"{100 * share[key]:.0f}"
        for key in ("p50", "p10", "p90")
    )
    return f"{median} ({low}-{high})"


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(SwitchCostArgs, description=__doc__))
