"""What `benchmarks.schedulers.schedulers` makes of what schedulers reached: rows, intervals, aims.

A contender is one tally per training seed (rules: one), all over the same cells. Intervals are
bootstraps that draw cells, the same for both sides of a ratio, and training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
"""Tallies of a contender over all cells, one per training seed."""
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


@dataclass(frozen=True)
class Row:
    """What a contender reached in a scenario.

    Attributes:
        name: Who.
        trained: Whether it was trained.
        goodput: Total tokens over total seconds of a cell.
        goodput_by_seed: The same of each training seed.
        mean_of_ratios: Mean over rounds of tokens per second: the papers' figure.
        mean_of_ratios_over_fixed: The same over that of fixed lengths.
        over_fixed: Goodput over that of fixed lengths.
        over_closed_form: Goodput over that of `heterogeneous@beta`.
        share: Share of the oracle's gain over `heterogeneous@beta`; None without an oracle's gain.
        fairness: Jain's index of the users of a cell.
        user_rates: Tokens per second of users: 10th percentile, median, 90th.
        token_latency: Seconds per token by percentile of tokens.
        wasted: Share of the drafted tokens that were not accepted.
    """

    name: str
    trained: bool
    goodput: Interval
    goodput_by_seed: list[float]
    mean_of_ratios: Interval
    mean_of_ratios_over_fixed: Interval
    over_fixed: Interval
    over_closed_form: Interval
    share: Interval | None
    fairness: float
    user_rates: tuple[float, float, float]
    token_latency: dict[str, float]
    wasted: float


@dataclass(frozen=True)
class Verdict:
    """What is won over the best closed form with an estimate from rounds.

    Attributes:
        name: A trained contender, or the oracle.
        trained: Whether it was trained.
        closed_form: The best of `ONLINE` on these very cells.
        over_fixed: Goodput over that of fixed lengths.
        over_closed_form: Goodput over that of this closed form.
        share: Share of the oracle's gain over it; None without an oracle's gain.
    """

    name: str
    trained: bool
    closed_form: str
    over_fixed: Interval
    over_closed_form: Interval
    share: Interval | None


@dataclass(frozen=True)
class Outcome:
    """All figures of a scenario.

    Attributes:
        scenario: The cells.
        heterogeneity: What a length for each user wins over one for all, acceptance being known.
        rows: One per contender.
        verdicts: One per trained contender, and the oracle's.
    """

    scenario: Scenario
    heterogeneity: float
    rows: list[Row]
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Aim:
    """What a trained contender should reach.

    Attributes:
        name: Who.
        what: Over whom, and where.
        aim: The ratio of goodputs.
        lowest: The lowest that was reached.
        where: The scenario of that.
        met: In how many scenarios the aim was reached.
        scenarios: In how many it should be.
    """

    name: str
    what: str
    aim: float
    lowest: Interval
    where: str
    met: int
    scenarios: int

    @property
    def reached(self) -> bool:
        """Whether it was in all."""
        return self.met == self.scenarios


def join(parts: Sequence[CellTotals]) -> CellTotals:
    """The tally of all these cells together."""
    columns: dict[str, Any] = {}
    for one in fields(CellTotals):
        values = [getattr(part, one.name) for part in parts]
        lists = isinstance(values[0], list)
        columns[one.name] = list(chain(*values)) if lists else np.concatenate(values)
    return CellTotals(**columns)


def judge(
    scenario: Scenario, contenders: Sequence[Contender], played: Mapping[str, Runs]
) -> Outcome:
    """Figures of everybody.

    Args:
        scenario: The cells.
        contenders: Who played.
        played: What each reached, by name; `FIXED`, `ONLINE`, `EVERYBODY` and `ONE_BY_ONE` among
            them.
    """
    trained = {one.name: one.trained for one in contenders}
    best = max(ONLINE, key=lambda name: join(played[name]).goodput)
    judged = [name for name in played if trained[name] or name == ORACLE]
    return Outcome(
        scenario,
        over(played[ONE_BY_ONE], played[EVERYBODY]).value,
        [_row(name, trained[name], played) for name in played],
        [_verdict(name, trained[name], best, played) for name in judged],
    )


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


def aims_met(outcomes: Sequence[Outcome]) -> list[Aim]:
    """Each trained contender's aims: over fixed where users differ most, over closed forms always.

    Users differ most where a length for each user wins most over one for all (`heterogeneity`),
    which no trained scheduler has a part in.
    """
    widest = max(outcomes, key=lambda one: one.heterogeneity)
    found = []
    for name in (verdict.name for verdict in widest.verdicts if verdict.trained):
        mine = {str(one.scenario): _named(one.verdicts, name) for one in outcomes}
        closed = {where: one.over_closed_form for where, one in mine.items()}
        where = min(closed, key=lambda one: closed[one].value)
        above = sum(one.value >= AIM_OVER_CLOSED_FORM for one in closed.values())
        count, most = len(outcomes), str(widest.scenario)
        fixed = mine[most].over_fixed
        met = int(fixed.value >= AIM_OVER_FIXED)
        what = "over fixed where users differ most", "over the best closed form everywhere"
        found.append(Aim(name, what[0], AIM_OVER_FIXED, fixed, most, met, 1))
        found.append(Aim(name, what[1], AIM_OVER_CLOSED_FORM, closed[where], where, above, count))
    return found


def _row(name: str, trained: bool, played: Mapping[str, Runs]) -> Row:
    mine, fixed, closed = played[name], played[FIXED], played[CLOSED_FORM]
    every = join(mine)
    low, middle, high = (every.user_rate(percentile) for percentile in (10, 50, 90))
    return Row(
        name=name,
        trained=trained,
        goodput=pooled([mine], lambda speeds: speeds[0]),
        goodput_by_seed=[run.goodput for run in mine],
        mean_of_ratios=pooled([mine], lambda speeds: speeds[0], _ratios),
        mean_of_ratios_over_fixed=pooled([mine, fixed], lambda v: v[0] / v[1], _ratios),
        over_fixed=over(mine, fixed),
        over_closed_form=over(mine, closed),
        share=share_of_gain(mine, closed, played.get(ORACLE)),
        fairness=every.fairness,
        user_rates=(low, middle, high),
        token_latency={f"p{p}": every.latency(p) for p in PERCENTILES},
        wasted=every.wasted,
    )


def _verdict(name: str, trained: bool, best: str, played: Mapping[str, Runs]) -> Verdict:
    mine, closed = played[name], played[best]
    share = share_of_gain(mine, closed, played.get(ORACLE))
    return Verdict(name, trained, best, over(mine, played[FIXED]), over(mine, closed), share)


def _ratios(one: CellTotals) -> tuple[Floats, Floats]:
    """Parts of a mean over cells."""
    return one.round_goodput, np.ones_like(one.round_goodput)


def _named(verdicts: Sequence[Verdict], name: str) -> Verdict:
    return next(verdict for verdict in verdicts if verdict.name == name)
