"""How fast cells are stepped for training, and how long a scheduler takes to decide.

    $ python -m benchmarks.schedulers.speed --traces runs/users --json runs/scheduler_speed.json

* Stepping: user-rounds a second of the vectorised environment under random actions, for every kind
  of action, observations and rewards included: what reinforcement learning can get at most.
* Deciding: milliseconds from the state of one cell to its plan, by the closed form and by
  (untrained) networks of the usual size.

Everything on one thread unless --threads says otherwise; medians and ranges over repeats.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.schedulers.contenders import CLOSED_FORM
from benchmarks.schedulers.tables import Sheet
from draftgym.agents.common.settings import SchedulerPPO
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.agents.scheduler.planners import (
    ENVIRONMENTS,
    CellPlanner,
    LearnedPlanner,
    RulePlanner,
)
from draftgym.agents.scheduler.vec_env import SchedulerVecEnv
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.provenance import describe_host, plain
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from draftgym.policies.schedulers.learned import BELIEFS, LENGTHS, LearnedScheduler, SchedulerHead
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.report.table import make_console
from draftgym.rollouts.traces.file import read_traces

KINDS = (LENGTHS, BELIEFS)
"""What random agents set, and what networks say."""
WARM_UP = 3
"""Steps and decisions that do not count."""


@dataclass(frozen=True, kw_only=True)
class SchedulerSpeedArgs:
    """Measure the speed of stepping and of deciding.

    Attributes:
        traces: Folder of traces.
        users: Numbers of users.
        cell: All else of the cells.
        count: Cells that are stepped together.
        steps: Steps of a repeat.
        decisions: Decisions of a repeat.
        repeats: Repeats of everything.
        threads: CPU threads.
        json: Write the figures to this file.
        markdown: Write the tables to this file.
    """

    traces: Path = Path("runs/users")
    users: tuple[int, ...] = (8, 16)
    cell: CellArgs = field(default_factory=CellArgs)
    count: int = SchedulerPPO.n_envs
    steps: int = 64
    decisions: int = 32
    repeats: int = 7
    threads: int = 1
    json: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True)
class Measured:
    """Repeats of a measurement.

    Attributes:
        what: Which.
        users: Users of a cell, K.
        median: The median.
        low, high: The least and the most.
    """

    what: str
    users: int
    median: float
    low: float
    high: float


def measure(args: SchedulerSpeedArgs) -> dict[str, list[Measured]]:
    """Measures, prints the tables and writes the files.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    least = min(args.count, args.steps, args.decisions, args.repeats, args.threads)
    if least < 1 or not args.users:
        raise DraftgymError("nothing to measure", "give one user, step, decision and repeat")
    for path, option in ((args.json, "--json"), (args.markdown, "--markdown")):
        if path is not None:
            check_writable(path, f"name another file with {option}")
    torch.set_num_threads(args.threads)
    traces = read_traces(args.traces)
    table = ChainTable(traces, args.cell.settings().arms)
    found: dict[str, list[Measured]] = {"stepping": [], "deciding": []}
    for users in args.users:
        cell = replace(args.cell, users=users)
        found["stepping"] += [stepping(kind, cell, table, args) for kind in KINDS]
        found["deciding"] += deciding(cell, table, args)
    shown = [
        _sheet(f"User-rounds a second, {args.count} cells at once", found["stepping"], ",.0f"),
        _sheet("Milliseconds from a cell's state to its plan", found["deciding"], ".2f"),
    ]
    for one in shown:
        one.print(make_console())
    if args.json is not None:
        facts = {"traces": traces.origin.describe(), "settings": plain(asdict(args))}
        figures = {what: list(map(asdict, rows)) for what, rows in found.items()}
        body = {"environment": facts | describe_host(), **figures}
        args.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    if args.markdown is not None:
        text = "\n\n".join(one.markdown() for one in shown) + "\n"
        args.markdown.write_text(text, encoding="utf-8")
    return found


def stepping(kind: str, cell: CellArgs, table: ChainTable, args: SchedulerSpeedArgs) -> Measured:
    """User-rounds a second of the vectorised environment under random actions of one kind."""
    env = SchedulerVecEnv(table, cell.settings(), args.count, kind=ENVIRONMENTS[kind])
    env.action_space.seed(0)
    env.reset()

    def play(steps: int) -> float:
        """User-rounds of so many steps; actions are drawn beforehand."""
        actions = [
            np.stack([env.action_space.sample() for _ in range(args.count)]) for _ in range(steps)
        ]
        env.forget_counts()
        start = time.perf_counter()
        for action in actions:
            env.step(action)
        return env.user_rounds / (time.perf_counter() - start)

    play(WARM_UP)
    return _measured(kind, cell.users, [play(args.steps) for _ in range(args.repeats)])


def deciding(cell: CellArgs, table: ChainTable, args: SchedulerSpeedArgs) -> list[Measured]:
    """Milliseconds of a decision in one cell, by everybody."""
    planners: dict[str, Callable[[Cell], CellPlanner]] = {
        CLOSED_FORM: lambda one: RulePlanner(CLOSED_FORM, one)
    }
    for kind in KINDS:
        planners[f"network, {kind}"] = lambda one, kind=kind: LearnedPlanner(  # type: ignore[misc]
            _untrained(kind, one.longest), one
        )
    found = []
    for name, make in planners.items():
        one = Cell(table, cell.settings())
        one.reset(np.random.default_rng(0))
        planner = make(one)
        _decide(planner, one, WARM_UP)
        each = [_decide(planner, one, args.decisions) for _ in range(args.repeats)]
        found.append(_measured(name, cell.users, each))
    return found


def _decide(planner: CellPlanner, cell: Cell, decisions: int) -> float:
    """Milliseconds per decision; the cell goes on between them, off the clock."""
    seconds = 0.0
    for _ in range(decisions):
        start = time.perf_counter()
        plan = planner.plan()
        seconds += time.perf_counter() - start
        planner.learn(cell.step(plan))
    return 1000 * seconds / decisions


def _untrained(kind: str, longest: int) -> LearnedScheduler:
    head = SchedulerHead(kind, longest, USER_FEATURES, CELL_FEATURES)
    return LearnedScheduler(head.network(SchedulerPPO.width), head)


def _measured(what: str, users: int, repeats: Sequence[float]) -> Measured:
    return Measured(what, users, float(np.median(repeats)), min(repeats), max(repeats))


def _sheet(title: str, rows: Sequence[Measured], form: str) -> Sheet:
    cells = [
        [one.what, str(one.users), f"{one.median:{form}}", f"{one.low:{form}} to {one.high:{form}}"]
        for one in rows
    ]
    return Sheet(title, ("what", "users", "median", "range"), cells)


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(SchedulerSpeedArgs, description=__doc__))
