"""Schedulers against each other on held-out traces: do trained ones beat the closed forms?

    $ draftgym collect --prompts train   --arms small:16 ngram:16 --out runs/users
    $ draftgym collect --prompts heldout --arms small:16 ngram:16 --out runs/users-heldout
    $ python -m benchmarks.schedulers.comparison --traces runs/users-heldout --known runs/users \
        --policies ppo=runs/ppo-0/policy,runs/ppo-1/policy sac=runs/sac-0/policy \
        --json runs/schedulers.json

Every rule, with every belief about acceptance, an oracle, and trained policies, for every setting,
payload and number of users. All of them play the same cells; each evaluation seed brings other
users, channels and prompts. Folders behind one `method=` are training seeds of one method and make
one row. Rules play without what devices report of their confidence; a trained policy plays with it
if it was trained with it.

Where users differ most, trained schedulers should reach 1.88 times the goodput of fixed lengths, as
the paper's closed form does; and everywhere 1.05 times that of the best closed form whose
estimates come from rounds. Whether they do is printed last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks.report import Cell, Json, Table, interval
from benchmarks.results import Result, check, finish
from benchmarks.schedulers.contenders import (
    Contender,
    rehearse,
    rule_contenders,
    trained_contenders,
)
from benchmarks.schedulers.figures import (
    AIM_OVER_CLOSED_FORM,
    AIM_OVER_FIXED,
    Scenario,
    aims_met,
    join,
    judge,
)
from draftgym.agents.scheduler.cell_args import CellArgs, known_means, means_of
from draftgym.agents.scheduler.evaluation import EvaluateSchedulersArgs, compare
from draftgym.agents.scheduler.totals import CellTotals
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.envs.cell.cell import Cell as UserCell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.planners import MakePlanner
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet

LEGEND = (
    "tokens/s: total tokens over total seconds of a cell, with its 95 % bootstrap interval over "
    "cells and training seeds. over fixed, over het: the same over fixed lengths' and over "
    "heterogeneous@beta's, paired. share: of the oracle's gain over heterogeneous@beta (in the "
    "summary: over the closed form named there). mean of ratios: mean over rounds of tokens/s, the "
    "papers' figure, and over that of fixed lengths. forced: drafts have one token or more. "
    "Jain: fairness in a cell. user: tokens/s of single users. s/token: by percentile of tokens. "
    "wasted: drafted tokens that were not accepted. a length for each wins: heterogeneous@given "
    "over homogeneous@given. (most): where that is most."
)


@dataclass(frozen=True, kw_only=True)
class SchedulersArgs:
    """Compare schedulers of many users.

    Attributes:
        traces: Folder of traces to play, of held-out prompts.
        known: Folder of traces of training prompts, which told the mean acceptance of tasks.
        policies: Trained schedulers: method=FOLDER,FOLDER with a folder for each training seed, or
            a folder alone.
        settings: Settings by name (`draftgym.envs.cell.settings`).
        payloads: What devices upload: tokens, scalar or truncated.
        users: Numbers of users.
        cell: All else of the cells; its setting, users, payload and confidence are not read.
        cells: Cells of each evaluation seed.
        rounds: Rounds of each.
        seeds: Evaluation seeds.
        json: Write the figures to this file; anew after every scenario.
    """

    traces: Path = Path("runs/users-heldout")
    known: Path = Path("runs/users")
    policies: tuple[str, ...] = ()
    settings: tuple[str, ...] = ("multispin-llama2", "multispin-qwen3.5")
    payloads: tuple[str, ...] = ("truncated", "tokens")
    users: tuple[int, ...] = (4, 8, 16)
    cell: CellArgs = field(default_factory=CellArgs)
    cells: int = 32
    rounds: int = 256
    seeds: int = 5
    json: Path | None = None


@dataclass(frozen=True)
class Ground:
    """What is played on.

    Attributes:
        args: What was asked for.
        table: The texts.
        means: Mean acceptance of tasks, as known beforehand.
    """

    args: SchedulersArgs
    table: ChainTable
    means: dict[str, float]

    def cell(self, scenario: Scenario, confidence: bool = False) -> CellArgs:
        """The cells of a scenario."""
        return replace(
            self.args.cell,
            setting=scenario.setting,
            payload=scenario.payload,
            users=scenario.users,
            confidence=confidence,
        )


def compare_schedulers(args: SchedulersArgs) -> Result:
    """Plays everything, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend; found before anything is played.
    """
    scenarios = _scenarios(args)
    traces, known = read_traces(args.traces), read_traces(args.known)
    refuse_shared_prompts(known, traces)
    arms = args.cell.settings().arms
    ground = Ground(args, ChainTable(traces, arms), means_of(ChainTable(known, arms)))
    trained = trained_contenders(args.policies, traces.origin)
    contenders = [*rule_contenders(traces.origin), *trained]
    for scenario in scenarios:
        settings = ground.cell(scenario).settings(known_means(ground.means, ground.table))
        rehearse(contenders, UserCell(ground.table, settings))
    facts = {
        "traces": traces.origin.describe(),
        "known": known.origin.describe(),
        "texts": len(ground.table.texts),
        "arms": list(map(str, ground.table.arms)),
    }
    outcomes: list[Result] = []
    for scenario in scenarios:
        outcomes.append(play_scenario(scenario, contenders, ground))
        figures = {"aims": aims_met(outcomes), "scenarios": outcomes}
        last = scenario is scenarios[-1]
        result = finish(tables, args, figures, facts=facts, last=last)
    return result


def play_scenario(scenario: Scenario, contenders: Sequence[Contender], ground: Ground) -> Result:
    """Everybody in the same cells."""
    played = {}
    for contender in tqdm(contenders, desc=str(scenario), unit="scheduler"):
        each = zip(contender.planners, contender.confidence, strict=True)
        played[contender.name] = [_play(make, told, scenario, ground) for make, told in each]
    return judge(scenario, contenders, played)


def refuse_shared_prompts(known: TraceSet, traces: TraceSet) -> None:
    """Raises `DraftgymError` if what is played was known beforehand."""
    shared = {text.question_id for text in known.texts} & {t.question_id for t in traces.texts}
    if shared:
        raise DraftgymError(
            f"both folders of traces have the prompt {min(shared)!r}",
            "play held-out prompts: draftgym collect --prompts heldout",
        )


def _play(make: MakePlanner, confidence: bool, scenario: Scenario, ground: Ground) -> CellTotals:
    """The cells of all evaluation seeds; no two have a generator in common."""
    args, cell = ground.args, ground.cell(scenario, confidence)
    asked = EvaluateSchedulersArgs(cell=cell, cells=args.cells, rounds=args.rounds)
    seeds = [replace(asked, seed=seed * args.cells) for seed in range(args.seeds)]
    return join([compare({"": make}, one, ground.table, ground.means)[""] for one in seeds])


def _scenarios(args: SchedulersArgs) -> list[Scenario]:
    """What is to be played.

    Raises:
        DraftgymError: Nothing, or something that cannot be; or a file cannot be written.
    """
    check(args, "cells", "rounds", "seeds")
    every = product(args.settings, args.payloads, args.users)
    scenarios = [Scenario(*one) for one in dict.fromkeys(every)]
    if not scenarios:
        raise DraftgymError("no cells to play", "name --settings, --payloads and --users")
    return scenarios


def tables(result: Json) -> list[Table]:
    """Who was trained, and the oracle, in every scenario; then everybody, scenario by scenario."""
    outcomes = result["scenarios"]
    aims = [
        f"{one['name']} {one['what']}: aim {one['aim']} {'met' if one['reached'] else 'NOT met'} "
        f"in {one['met']} of {one['scenarios']}; lowest {_line(one['lowest'])} ({one['where']})"
        for one in result["aims"]
    ]
    return [_summary(outcomes, [*aims, LEGEND]), *(t for one in outcomes for t in _scenario(one))]


def _scenario(outcome: Json) -> list[Table]:
    """How fast everybody was, and how users fared."""
    who: dict[str, Cell] = {"who": _who}
    speed: dict[str, Cell] = {
        "tokens/s": lambda row: interval(row["goodput"], ".2f"),
        "over fixed": lambda row: interval(row["over_fixed"]),
        "over het": lambda row: interval(row["over_closed_form"]),
        "share": lambda row: interval(row["share"], ".0%"),
        "mean of ratios": lambda row: (
            f"{row['mean_of_ratios']['value']:.2f}\n"
            f"(x {row['mean_of_ratios_over_fixed']['value']:.3f})"
        ),
    }
    service: dict[str, Cell] = {
        "Jain": lambda row: f"{row['fairness']:.3f}",
        "user p10 p50 p90": lambda row: " ".join(f"{rate:.2f}" for rate in row["user_rates"]),
        "s/token p50 p95 p99": lambda row: " ".join(
            f"{seconds:.3f}" for seconds in row["token_latency"].values()
        ),
        "wasted": lambda row: f"{row['wasted']:.0%}",
    }
    name = str(Scenario(**outcome["scenario"]))
    title = f"{name}; a length for each wins x {outcome['heterogeneity']:.3f} over one for all"
    return [
        Table.of(title, outcome["rows"], who | speed, _goodput),
        Table.of(f"{name}: users", outcome["rows"], who | service, _goodput),
    ]


def _summary(outcomes: Sequence[Json], notes: Sequence[str]) -> Table:
    widest = max(outcomes, key=lambda one: float(one["heterogeneity"]))
    rows = [
        {"where": str(Scenario(**one["scenario"])), "most": one is widest, **verdict}
        for one in outcomes
        for verdict in one["verdicts"]
    ]
    columns: dict[str, Cell] = {
        "cells": lambda row: f"{row['where']}{' (most)' if row['most'] else ''}",
        "who": lambda row: str(row["name"]),
        "over fixed": lambda row: (
            interval(row["over_fixed"])
            + (f" {_met(row, 'over_fixed', AIM_OVER_FIXED)}" if row["most"] else "")
        ),
        "best closed form": lambda row: str(row["closed_form"]),
        "over it": lambda row: interval(row["over_closed_form"]),
        f">= {AIM_OVER_CLOSED_FORM}": lambda row: _met(
            row, "over_closed_form", AIM_OVER_CLOSED_FORM
        ),
        "share": lambda row: interval(row["share"], ".0%"),
    }
    title = (
        f"Over the best closed form with an estimate (over fixed: aim {AIM_OVER_FIXED} at (most))"
    )
    return Table.of(title, rows, columns, notes=notes)


def _who(row: Json) -> str:
    seeds = len(row["goodput_by_seed"])
    return f"{row['name']} ({seeds} seeds)" if seeds > 1 else str(row["name"])


def _goodput(row: Json) -> float:
    return float(row["goodput"]["value"])


def _met(row: Json, key: str, aim: float) -> str:
    return ("yes" if row[key]["value"] >= aim else "no") if row["trained"] else ""


def _line(value: Json) -> str:
    return " ".join(interval(value).split())


if __name__ == "__main__":
    with exit_on_user_error():
        compare_schedulers(tyro.cli(SchedulersArgs, description=__doc__))
