"""What `benchmarks.schedulers.comparison` makes of what schedulers reached: rows, intervals, aims.

A contender is one `CellTotals` per training seed (rules: one), over the same cells. Intervals are
bootstraps that draw cells, the same for both sides of a ratio, and training seeds. Goodput is total
tokens over total seconds of a cell; the papers' figure, the mean over rounds of tokens per second,
is told beside it (`mean_of_ratios`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Json
from benchmarks.results import Result
from benchmarks.schedulers.contenders import (
    CLOSED_FORM,
    EVERYBODY,
    FIXED,
    ONE_BY_ONE,
    ONLINE,
    ORACLE,
    Contender,
)
from draftgym.agents.scheduler.totals import PERCENTILES, CellTotals
from draftgym.rollouts.report.statistics import Interval, bootstrap

Floats = NDArray[np.float64]
Runs = Sequence[CellTotals]
"""Totals of a contender over all cells, one per training seed."""
AIM_OVER_FIXED, AIM_OVER_CLOSED_FORM = 1.88, 1.05


@dataclass(frozen=True)
class Scenario:
    """Cells of one kind.

    Attributes:
        setting: Radio, device and server.
        payload: What is uploaded.
        users: Places, K.
    """

    setting: str
    payload: str
    users: int

    def __str__(self) -> str:
        return f"{self.setting}, {self.payload}, {self.users} users"


def join(parts: Sequence[CellTotals]) -> CellTotals:
    """The totals of all these cells together."""
    columns: dict[str, Any] = {}
    for one in fields(CellTotals):
        values = [getattr(part, one.name) for part in parts]
        lists = isinstance(values[0], list)
        columns[one.name] = list(chain(*values)) if lists else np.concatenate(values)
    return CellTotals(**columns)


def judge(
    scenario: Scenario, contenders: Sequence[Contender], played: Mapping[str, Runs]
) -> Result:
    """Figures of everybody, as JSON types.

    Args:
        scenario: The cells.
        contenders: Who played.
        played: What each reached, by name; `FIXED`, `ONLINE`, `EVERYBODY` and `ONE_BY_ONE` among
            them.

    Returns:
        `heterogeneity` is what a length for each user wins over one for all, acceptance being
        known. `rows` has everybody, with gains over fixed lengths and over `heterogeneous@beta`.
        `verdicts` has trained contenders and the oracle, with gains over the best of `ONLINE` on
        these very cells. `share` is the share of the oracle's gain over the same reference.
    """
    trained = {one.name: one.trained for one in contenders}
    best = max(ONLINE, key=lambda name: join(played[name]).goodput)
    rows = [{"name": name, "trained": trained[name], **_row(name, played)} for name in played]
    verdicts = [
        {"name": name, "trained": trained[name], "closed_form": best, **_gains(name, best, played)}
        for name in played
        if trained[name] or name == ORACLE
    ]
    return {
        "scenario": asdict(scenario),
        "heterogeneity": over(played[ONE_BY_ONE], played[EVERYBODY]).value,
        "rows": rows,
        "verdicts": verdicts,
    }


def over(mine: Runs, reference: Runs) -> Interval:
    """Ratio of two goodputs."""
    return pooled([mine, reference], lambda speeds: speeds[0] / speeds[1])


def share_of_gain(mine: Runs, reference: Runs, oracle: Runs | None) -> Interval | None:
    """What part of the oracle's gain over the reference is reached; None where it gains nothing."""
    if oracle is None or over(oracle, reference).value <= 1:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        found = pooled([mine, reference, oracle], lambda v: (v[0] - v[1]) / (v[2] - v[1]))
    return found if math.isfinite(found.low) and math.isfinite(found.high) else None


def pooled(
    sides: Sequence[Runs],
    figure: Callable[[Floats], Floats],
    parts: Callable[[CellTotals], tuple[Floats, Floats]] = lambda one: (one.tokens, one.seconds),
) -> Interval:
    """A figure of several contenders' speeds, with its 95 % interval.

    Args:
        sides: The contenders, over the same cells.
        figure: From speeds `[sides, draws]` to the figure `[draws]`.
        parts: What is summed over cells and training seeds and divided, `[cells]` each.
    """
    columns = np.concatenate([parts(run) for runs in sides for run in runs])  # [2 runs, cells]
    ends = np.cumsum([len(runs) for runs in sides])[:-1]

    def speeds(sums: Floats) -> Floats:
        rng, found = np.random.default_rng(0), []
        for runs in np.split(sums.reshape(len(sums), -1, 2), ends, axis=1):  # [draws, runs, 2]
            count = runs.shape[1]
            drawn = rng.multinomial(count, np.full(count, 1 / count), size=len(sums))
            drawn[0] = 1  # the first is no draw but the figure itself
            above, below = np.einsum("dr,drp->pd", drawn, runs)
            found.append(above / below)
        return figure(np.stack(found))

    return bootstrap(columns.T.tolist(), speeds)


def aims_met(outcomes: Sequence[Json]) -> list[Result]:
    """Each trained contender's aims: over fixed where users differ most, over closed forms always.

    Users differ most where a length for each user wins most over one for all (`heterogeneity`),
    which no trained scheduler has a part in. `lowest` is the lowest ratio of goodputs, reached in
    `where`; the aim was met in `met` of `scenarios`.
    """
    widest = max(outcomes, key=lambda one: float(one["heterogeneity"]))
    found = []
    for name in (one["name"] for one in widest["verdicts"] if one["trained"]):
        mine = [
            (str(Scenario(**one["scenario"])), verdict)
            for one in outcomes
            for verdict in one["verdicts"]
            if verdict["name"] == name
        ]
        most = str(Scenario(**widest["scenario"]))
        fixed = [(where, one["over_fixed"]) for where, one in mine if where == most]
        closed = [(where, one["over_closed_form"]) for where, one in mine]
        what = "over fixed where users differ most", "over the best closed form everywhere"
        found.append({"name": name, "what": what[0], **_aim(AIM_OVER_FIXED, fixed)})
        found.append({"name": name, "what": what[1], **_aim(AIM_OVER_CLOSED_FORM, closed)})
    return found


def _aim(aim: float, ratios: Sequence[tuple[str, Json]]) -> Result:
    where, lowest = min(ratios, key=lambda one: float(one[1]["value"]))
    met = sum(one["value"] >= aim for _, one in ratios)
    facts = {"aim": aim, "lowest": lowest, "where": where, "met": met, "scenarios": len(ratios)}
    return {**facts, "reached": met == len(ratios)}


def _row(name: str, played: Mapping[str, Runs]) -> Result:
    mine, fixed = played[name], played[FIXED]
    every = join(mine)
    return {
        "goodput": asdict(pooled([mine], lambda speeds: speeds[0])),
        "goodput_by_seed": [run.goodput for run in mine],
        "mean_of_ratios": asdict(pooled([mine], lambda speeds: speeds[0], _ratios)),
        "mean_of_ratios_over_fixed": asdict(pooled([mine, fixed], lambda v: v[0] / v[1], _ratios)),
        **_gains(name, CLOSED_FORM, played),
        "fairness": every.fairness,
        "user_rates": [every.user_rate(percentile) for percentile in (10, 50, 90)],
        "token_latency": {f"p{p}": every.latency(p) for p in PERCENTILES},
        "wasted": every.wasted,
    }


def _gains(name: str, closed_form: str, played: Mapping[str, Runs]) -> Result:
    mine, closed = played[name], played[closed_form]
    share = share_of_gain(mine, closed, played.get(ORACLE))
    return {
        "over_fixed": asdict(over(mine, played[FIXED])),
        "over_closed_form": asdict(over(mine, closed)),
        "share": None if share is None else asdict(share),
    }


def _ratios(one: CellTotals) -> tuple[Floats, Floats]:
    """Parts of a mean over cells."""
    return one.round_goodput, np.ones_like(one.round_goodput)
