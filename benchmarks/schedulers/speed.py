"""How fast cells are stepped for training, and how long a scheduler takes to decide.

    $ python -m benchmarks.schedulers.speed --traces runs/users --json runs/scheduler_speed.json

* Stepping: user-rounds a second of the vectorised environment under random actions, for every kind
  of action, observations and rewards included: what reinforcement learning can get at most.
* Deciding: milliseconds from the state of one cell to its plan, by the closed form and by
  (untrained) networks of the usual size.

Everything on one thread unless --threads says otherwise; medians and ranges over repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.report import Json, Table, number
from benchmarks.results import Result, check, finish
from benchmarks.schedulers.contenders import CLOSED_FORM
from draftgym.agents.common.settings import SchedulerPPO
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from draftgym.envs.scheduler.planners import ENVIRONMENTS, CellPlanner, LearnedPlanner, RulePlanner
from draftgym.envs.scheduler.vector import VECTOR_FORMS
from draftgym.policies.schedulers.learned import BELIEFS, LENGTHS, LearnedScheduler, SchedulerHead
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


def measure(args: SchedulerSpeedArgs) -> Result:
    """Measures, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args, "count", "steps", "decisions", "repeats", "threads")
    if not args.users:
        raise DraftgymError("nothing to measure", "give a number of users")
    torch.set_num_threads(args.threads)
    traces = read_traces(args.traces)
    table = ChainTable(traces, args.cell.settings().arms)
    found: dict[str, list[Result]] = {"stepping": [], "deciding": []}
    for users in args.users:
        cell = replace(args.cell, users=users)
        found["stepping"] += [stepping(kind, cell, table, args) for kind in KINDS]
        found["deciding"] += deciding(cell, table, args)
    return finish(tables, args, found, facts={"traces": traces.origin.describe()})


def tables(result: Json) -> list[Table]:
    """Stepping, and deciding."""
    count = result["environment"]["settings"]["count"]
    titles = {
        "stepping": (f"User-rounds a second, {count} cells at once", ",.0f"),
        "deciding": ("Milliseconds from a cell's state to its plan", ".2f"),
    }
    return [
        Table.of(
            title,
            result[what],
            {
                "what": number("what", ""),
                "users": number("users", ""),
                "median": number("median", form),
                "lowest": number("low", form),
                "highest": number("high", form),
            },
        )
        for what, (title, form) in titles.items()
    ]


def stepping(kind: str, cell: CellArgs, table: ChainTable, args: SchedulerSpeedArgs) -> Result:
    """User-rounds a second of the vectorised environment under random actions of one kind."""
    env = VECTOR_FORMS[ENVIRONMENTS[kind]](args.count, table, cell.settings())
    env.action_space.seed(0)
    env.reset()

    def play(steps: int) -> float:
        """User-rounds of so many steps; actions are drawn beforehand."""
        actions = [env.action_space.sample() for _ in range(steps)]
        env.forget_counts()
        start = time.perf_counter()
        for action in actions:
            env.step(action)
        return env.user_rounds / (time.perf_counter() - start)

    play(WARM_UP)
    return _measured(kind, cell.users, [play(args.steps) for _ in range(args.repeats)])


def deciding(cell: CellArgs, table: ChainTable, args: SchedulerSpeedArgs) -> list[Result]:
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


def _measured(what: str, users: int, repeats: Sequence[float]) -> Result:
    spread = {"median": float(np.median(repeats)), "low": min(repeats), "high": max(repeats)}
    return {"what": what, "users": users, **spread}


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(SchedulerSpeedArgs, description=__doc__))
