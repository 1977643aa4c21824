"""What is a better division of the band worth, when channel reports are late?

    $ python -m benchmarks.schedulers.doubt --policy runs/edge/late-0/policy \
        --cell.report-rounds-old 1 --cell.report-error-db 3 --cell.deadline 0.6

One scheduler's beliefs about acceptance, and the optimal rule at channels that are believed in
several ways: as reported, halfway to the mean of all reports (in decibels), at that mean, and as
they are, which nobody can know: it bounds what dividing the band otherwise can gain. Each way once
for the division alone, with the lengths that reports lead to, and once for lengths as well. Equal
shares, mixed in, are the simplest hedge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from gymnasium.utils.seeding import np_random
from tqdm import tqdm

from benchmarks.report import Cell as Column
from benchmarks.report import Json, Table, interval
from benchmarks.results import Result, check, finish
from draftgym.agents.scheduler.cell_args import CellArgs, known_means, means_of
from draftgym.agents.scheduler.totals import CellTotals, play_cells
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.radio.radio import known_efficiency
from draftgym.envs.scheduler.observation import observe_cell
from draftgym.policies.multispin.curves import belief_plan
from draftgym.policies.multispin.problem import Plan
from draftgym.policies.multispin.uplink import Floats
from draftgym.policies.schedulers.learned import BELIEFS, LearnedScheduler, load_scheduler
from draftgym.rollouts.report.statistics import Work, speed_ratio
from draftgym.rollouts.traces.file import read_traces

SILENT = 1e-12
"""The least signal-to-noise ratio; keeps decibels finite."""


@dataclass(frozen=True, kw_only=True)
class DoubtArgs:
    """Measure what doubting channel reports is worth.

    Attributes:
        policy: Folder of a trained scheduler that sets beliefs.
        traces: Folder of traces to play.
        known: Folder of traces of training prompts, which told the mean acceptance of tasks.
        users: Numbers of users.
        cell: All else of the cells.
        cells: Cells that everybody plays.
        rounds: Rounds of each.
        json: Write the figures to this file.
    """

    policy: Path
    traces: Path = Path("runs/users-heldout")
    known: Path = Path("runs/users")
    users: tuple[int, ...] = (4, 8, 16)
    cell: CellArgs = field(default_factory=CellArgs)
    cells: int = 80
    rounds: int = 192
    json: Path | None = None


def doubted(trust: float, cell: Cell) -> Floats:
    """Reports, so far from their mean over who is there as they are trusted, `[n, K]`."""
    decibels, there = _decibels(cell.reported), cell.users.active
    count = np.maximum(there.sum(-1, keepdims=True), 1)
    mean = np.where(there, decibels, 0.0).sum(-1, keepdims=True) / count
    return np.asarray(10 ** ((mean + trust * (decibels - mean)) / 10))


BELIEVED: dict[str, Callable[[Cell], Floats]] = {
    "as reported": partial(doubted, 1.0),
    "half trusted": partial(doubted, 0.5),
    "alike": partial(doubted, 0.0),
    "as they are (unknowable)": lambda cell: cell.channel.snr,
}
"""Ways to believe in channels `[n, K]`."""


class Doubting:
    """A scheduler whose band is divided by channels that it believes in; a `CellPlanner`.

    Args:
        cell: The cells, reset before.
        policy: Sets beliefs about acceptance.
        lengths, shares: The channels that lengths and shares are made for, of `BELIEVED`.
        equal: The part of the band that is divided equally among who sends.
    """

    def __init__(
        self, cell: Cell, policy: LearnedScheduler, lengths: str, shares: str, equal: float
    ) -> None:
        self.cell, self.policy, self._equal = cell, policy, equal
        self._lengths, self._shares = BELIEVED[lengths], BELIEVED[shares]

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""
        cell = self.cell
        beliefs, _ = self.policy.predict(observe_cell(cell), deterministic=True)
        known = known_efficiency(cell.band, self._lengths(cell), 1 / cell.settings.users)
        problem = replace(cell.problem(), efficiency=known)
        lengths = belief_plan(problem, beliefs, cell.longest).lengths
        plan = cell.best_plan(lengths, self._shares(cell))
        sends = cell.sending | (plan.lengths > 0)
        count = sends.sum(-1, keepdims=True)
        alike = np.where(count > 0, sends / np.maximum(count, 1), plan.shares)
        return replace(plan, shares=self._equal * alike + (1 - self._equal) * plan.shares)

    def learn(self, played: object) -> None:
        """Nothing."""


WAYS: dict[str, tuple[str, str, float]] = {
    "as reported": ("as reported", "as reported", 0.0),
    **{f"{part:.0%} equal": ("as reported", "as reported", part) for part in (0.25, 0.5, 1.0)},
    **{f"{name}, shares": ("as reported", name, 0.0) for name in list(BELIEVED)[1:]},
    **{f"{name}, lengths too": (name, name, 0.0) for name in list(BELIEVED)[1:]},
}
"""Who plays: channels for lengths and for shares, and the part that is divided equally."""


def measure(args: DoubtArgs) -> Result:
    """Plays, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args, "cells", "rounds")
    traces, known = read_traces(args.traces), read_traces(args.known)
    policy, arms = load_scheduler(args.policy, traces.origin), args.cell.settings().arms
    if policy.head.kind != BELIEFS:
        raise DraftgymError(
            f"scheduler {policy.name!r} sets {policy.head.kind}",
            "name one that sets beliefs alone: draftgym train-scheduler --actions beliefs",
        )
    table = ChainTable(traces, arms)
    means = known_means(means_of(ChainTable(known, arms)), table)
    rows: list[Json] = []
    for users in args.users:
        cells = Cell(table, replace(args.cell, users=users).settings(means), args.cells)
        totals = {}
        for name, (lengths, shares, equal) in tqdm(WAYS.items(), desc=f"{users} users"):
            make = partial(Doubting, policy=policy, lengths=lengths, shares=shares, equal=equal)
            seeds = [np_random(index)[0] for index in range(args.cells)]
            totals[name] = play_cells(make, cells, seeds, args.rounds)
        rows += [_row(users, name, totals) for name in WAYS]
    return finish(tables, args, {"rows": rows}, facts={"traces": traces.origin.describe()})


def tables(result: Json) -> list[Table]:
    """A row per way, numbers of users side by side."""
    by_way: dict[str, dict[int, Json]] = {}
    for row in result["rows"]:
        by_way.setdefault(row["way"], {})[row["users"]] = row
    users = dict.fromkeys(row["users"] for row in result["rows"])
    columns: dict[str, Column] = {}
    for count in users:
        columns[f"{count} users"] = lambda row, count=count: f"{row[count]['goodput']:.2f}"  # type: ignore[misc]
        columns[f"over reports, {count}"] = lambda row, count=count: interval(row[count]["over"])  # type: ignore[misc]
    return [Table.named("Channels believed", "believed", by_way, columns)]


def _row(users: int, way: str, totals: dict[str, CellTotals]) -> Json:
    mine, first = (_works(totals[name]) for name in (way, "as reported"))
    return {
        "users": users,
        "way": way,
        "goodput": totals[way].goodput,
        "over": vars(speed_ratio(mine, first)),
    }


def _works(one: CellTotals) -> list[Work]:
    cells = zip(one.tokens.tolist(), one.seconds.tolist(), strict=True)
    return [Work(int(tokens), seconds) for tokens, seconds in cells]


def _decibels(snr: Floats) -> Floats:
    return np.asarray(10 * np.log10(np.maximum(snr, SILENT)))


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(DoubtArgs, description=__doc__))
