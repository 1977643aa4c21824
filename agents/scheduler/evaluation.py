"""`draftgym evaluate --scheduler`: schedulers over the same cells, as a table, JSON and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from gymnasium.utils.seeding import np_random

from draftgym.agents.scheduler.cell_args import CellArgs, known_means, means_of
from draftgym.agents.scheduler.report import print_schedulers, write_scheduler_report
from draftgym.agents.scheduler.totals import PERCENTILES, PIECES, CellTotals, count_rounds
from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_json
from draftgym.decoding.provenance import describe_host, plain
from draftgym.decoding.verify.seeds import check_seed
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.planners import (
    LearnedPlanner,
    MakePlanner,
    planner_by_name,
    play_rounds,
)
from draftgym.policies.folder import PolicyTarget
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.report.plots import require_matplotlib
from draftgym.rollouts.report.statistics import Interval, Work, bootstrap, speed_ratio
from draftgym.rollouts.traces.file import read_traces

USUAL = (
    "fixed",
    "uniform-bandwidth",
    "p2p",
    "homogeneous@mean",
    "heterogeneous@mean",
    "heterogeneous@beta",
    "heterogeneous@beta+found",
    "heterogeneous@given",
)
"""Whom a comparison compares when nobody is named."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSchedulersArgs:
    """Compare schedulers of many users on held-out traces.

    Attributes:
        scheduler: Whom to compare: a rule (fixed, uniform-bandwidth, p2p, theorem-1, homogeneous,
            heterogeneous, gelato), with a belief about acceptance behind an @ (given, mean, beta,
            average, too-high, too-low), the folder of a trained scheduler, or oracle, which knows
            what will be accepted. Speeds are also told over the first one's. Without any: the
            papers' rules and baselines.
        traces: Folder of traces to play, of held-out prompts.
        known: Folder of traces that told the mean acceptance of tasks beforehand: those of the
            training prompts. Without it the played traces tell, a favour to all alike.
        cell: The cell; a trained scheduler serves any number of users.
        cells: Cells that everybody plays, each with users and channels of its own seed.
        rounds: Rounds of each.
        min_length: Shortest draft that closed forms plan: 1 in the paper, 0 may skip a user.
        seed: Seed of the first cell.
        json: Write the figures to this file.
        report: Write a page with plots into this folder (needs matplotlib).
    """

    scheduler: tuple[str, ...] = ()
    traces: Path = Path("runs/users-heldout")
    known: Path | None = None
    cell: CellArgs = field(default_factory=CellArgs)
    cells: int = 32
    rounds: int = 256
    min_length: int = 0
    seed: int = 0
    json: Path | None = None
    report: Path | None = None


@dataclass(frozen=True)
class ArmUse:
    """What users of one arm did.

    Attributes:
        drafting: Share of their rounds with a draft.
        drafted: Tokens drafted a round.
        committed: Tokens committed a round, the target's own included.
    """

    drafting: float
    drafted: float
    committed: float


@dataclass(frozen=True)
class SchedulerRow:
    """What a scheduler reached over all cells.

    Attributes:
        scheduler: Who.
        goodput: Total tokens over total seconds, of a cell.
        over_first: The same over the first scheduler's, with a paired bootstrap over cells.
        mean_of_ratios: Mean over rounds of tokens per second, the papers' figure.
        mean_of_ratios_over_first: The same over the first's.
        user_rates: Tokens per second of users: 10th percentile, median, 90th.
        fairness: Jain's index of the users of a cell.
        token_latency: Seconds per token by percentile of tokens.
        wasted: Share of the drafted tokens that were not accepted.
        drafted_per_token: Drafted tokens per committed one.
        time: Shares of the time by piece of a round (`draftgym.envs.cell.cell.CellTime`).
        arms: What users of each arm did.
        cell_goodputs: Goodput of each cell.
    """

    scheduler: str
    goodput: float
    over_first: Interval
    mean_of_ratios: float
    mean_of_ratios_over_first: Interval
    user_rates: tuple[float, float, float]
    fairness: float
    token_latency: dict[str, float]
    wasted: float
    drafted_per_token: float
    time: dict[str, float]
    arms: dict[str, ArmUse]
    cell_goodputs: list[float]


def evaluate_schedulers(args: EvaluateSchedulersArgs) -> list[SchedulerRow]:
    """Runs what the command line asks for, prints the table and writes the files.

    Raises:
        DraftgymError: Anything the user can mend; found before anything is played.
    """
    check_seed(args.seed)
    if args.cells < 1 or args.rounds < 1:
        raise DraftgymError(f"{args.cells} cells of {args.rounds} rounds", "play one at least")
    if args.json is not None:
        check_writable(args.json)
    if args.report is not None:
        check_writable(args.report / "index.html", "name another folder with --report")
        require_matplotlib()
    traces = read_traces(args.traces)
    arms = args.cell.settings().arms
    table = ChainTable(traces, arms)
    means = means_of(ChainTable(read_traces(args.known), arms) if args.known else table)
    planners = chosen_schedulers(args.scheduler or USUAL, traces.origin, args.min_length)
    totals = compare(planners, args, table, means)
    rows = make_rows(totals, table.arms)
    facts = {
        "target": traces.origin.target,
        "fingerprint": traces.origin.target_fingerprint,
        "arms": list(map(str, table.arms)),
        "texts": len(table.texts),
        **plain(asdict(args)),
        **describe_host(),
    }
    body = {"environment": facts, "schedulers": [asdict(row) for row in rows]}
    if args.json is not None:  # files first: whoever reads the table may close the pipe
        write_json(args.json, body)
    report = args.report and write_scheduler_report(args.report, facts, rows, body)
    print_schedulers(facts, rows)
    if report is not None:
        print(f"\nreport: {report}")
    return rows


def chosen_schedulers(
    specs: Sequence[str], target: PolicyTarget, min_length: int = 0
) -> dict[str, MakePlanner]:
    """Who plans, by the name that tables show.

    Args:
        specs: `rule`, `rule@belief`, or folders of trained schedulers.
        target: Whose texts are played; a scheduler of another target is refused.
        min_length: Shortest draft of closed forms.

    Raises:
        DraftgymError: An unknown scheduler, a folder that holds none, or two of one name.
    """
    planners: dict[str, MakePlanner] = {}
    for spec in map(str.strip, specs):
        make, name = planner_by_name(spec, target, min_length), spec
        if isinstance(make, partial) and make.func is LearnedPlanner:
            name = make.args[0].name
        if name in planners:
            raise DraftgymError(f"scheduler {name!r} is named twice", "name every one once")
        planners[name] = make
    return planners


def compare(
    planners: Mapping[str, MakePlanner],
    args: EvaluateSchedulersArgs,
    table: ChainTable,
    means: Mapping[str, float],
) -> dict[str, CellTotals]:
    """Everybody plays cells of the same seeds: the same users, texts and first channels.

    Only trained schedulers read what devices report of their confidence, and pay for it.
    """
    settings = args.cell.settings(known_means(means, table))
    totals = {}
    for name, make in planners.items():
        reads = isinstance(make, partial) and make.func is LearnedPlanner
        cell = Cell(table, settings if reads else replace(settings, confidence=False), args.cells)
        seeds = [np_random(args.seed + index)[0] for index in range(args.cells)]
        totals[name] = count_rounds(play_rounds(make, cell, seeds, args.rounds), len(table.arms))
    return totals


def make_rows(totals: Mapping[str, CellTotals], arms: Sequence[Arm]) -> list[SchedulerRow]:
    """Figures of everybody, and over the first."""
    first = next(iter(totals.values()))
    return [_row(name, one, first, arms) for name, one in totals.items()]


def _row(name: str, one: CellTotals, first: CellTotals, arms: Sequence[Arm]) -> SchedulerRow:
    ratios = list(zip(one.round_goodput.tolist(), first.round_goodput.tolist(), strict=True))
    low, middle, high = (one.user_rate(percentile) for percentile in (10, 50, 90))
    return SchedulerRow(
        scheduler=name,
        goodput=one.goodput,
        over_first=speed_ratio(_works(one), _works(first)),
        mean_of_ratios=float(one.round_goodput.mean()),
        mean_of_ratios_over_first=bootstrap(ratios, lambda sums: sums[:, 0] / sums[:, 1]),
        user_rates=(low, middle, high),
        fairness=one.fairness,
        token_latency={f"p{p}": one.latency(p) for p in PERCENTILES},
        wasted=one.wasted,
        drafted_per_token=float(one.drafted.sum() / one.tokens.sum()),
        time=dict(zip(PIECES, (one.pieces.sum(0) / one.seconds.sum()).tolist(), strict=True)),
        arms={
            str(arm): ArmUse(*(use[1:] / max(use[0], 1.0)).tolist())
            for arm, use in zip(arms, one.by_arm.sum(0), strict=True)
        },
        cell_goodputs=(one.tokens / one.seconds).tolist(),
    )


def _works(one: CellTotals) -> list[Work]:
    cells = zip(one.tokens.tolist(), one.seconds.tolist(), strict=True)
    return [Work(int(tokens), seconds) for tokens, seconds in cells]
