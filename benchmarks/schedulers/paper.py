"""Multi-SPIN's figures 6 to 8 again, from its own model, beside what its text states.

    $ python -m benchmarks.schedulers.paper --json runs/multispin_paper.json
    $ python -m benchmarks.schedulers.paper --draws 10 --rounds 2 --settings multispin-llama2

Tokens are accepted as Table I says, channels fade anew each round, and the scheduler knows both.
`ratio` is the paper's figure, the mean over rounds of tokens a second; `total` is all tokens over
all seconds, where a round in a deep fade counts for what it lasts. Intervals are 95 % bootstraps
over draws (cells); gains are paired. Power and devices' times are calibrated
(`draftgym.envs.cell.settings`), because the paper does not disclose them: goodputs are no
independent confirmation, shapes are.

1. Goodput of all rules (figure 6), by bandwidth (7) and number of users (8).
2. Whom they give the band: rank correlations with channel, acceptance and device.
3. What a decision takes on this machine: by the clock, and without waiting for the processor.
4. What smaller payloads save. With `scalar`, distributions of rejected tokens follow; plans do not
   reckon with that. `tokens` is enough for the coupled rule, which accepts less often than
   rejection, by how much depends on the models: `tokens, at worst` takes the least it guarantees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks.routers.arms_tables import print_table
from benchmarks.schedulers.paper_figures import (
    MOST_USERS,
    Figures,
    decision_times,
    figure_6,
    figure_7,
    figure_8,
    payloads,
    who_gets_band,
)
from benchmarks.schedulers.paper_rounds import Condition, Rounds
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.provenance import describe_host, plain
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.report.table import make_console

GOODPUT = {
    "multispin-llama2": {"heterogeneous": "145", "p2p": "31.5"},
    "multispin-qwen3.5": {"heterogeneous": "153"},
}
"""Tokens a second that the paper states (about; figure 6); the rest are curves without numbers. P2P
is 145 / 4.6."""
OVER_FIXED = {
    "multispin-llama2": {"5": "1.88", "10 users": "1.21", "24 users": "1.67"},
    "multispin-qwen3.5": {"5": "1.88", "10 users": "1.29", "24 users": "over 1.80"},
}
"""Heterogeneous over fixed as stated: at 5 MHz (figure 7), and where figure 8 begins and ends."""
GOAL_MS = 5.0
"""What a decision for 20 users should stay below."""


@dataclass(frozen=True, kw_only=True)
class MultispinPaperArgs:
    """What to evaluate.

    Attributes:
        settings: Calibrated settings of the paper.
        draws: Cells: tasks, devices and mean gains.
        rounds: Rounds of each, with fading of their own; the paper's averages are over 10.
        seed: Seed of all draws.
        min_length: Shortest draft: 1 in the paper, 0 lets a user skip drafting.
        json: Write the figures to this file.
    """

    settings: tuple[str, ...] = tuple(GOODPUT)
    draws: int = 50
    rounds: int = 10
    seed: int = 0
    min_length: int = 1
    json: Path | None = None


def evaluate(args: MultispinPaperArgs, console: Console | None = None) -> dict[str, Any]:
    """Plays all rounds, prints the tables, writes and returns the figures.

    Raises:
        DraftgymError: Bad arguments.
    """
    _check(args)
    drawn = {
        name: Rounds.draw(name, args.draws, args.rounds, MOST_USERS, args.seed)
        for name in args.settings
    }
    console = console or make_console()
    options = ("settings", "draws", "rounds", "seed", "min_length")
    result: dict[str, Any] = {
        "environment": {name: plain(getattr(args, name)) for name in options} | describe_host(),
        "settings": {},
    }
    for name, rounds in drawn.items():
        result["settings"][name] = figures = figures_of(rounds, args.min_length)
        print_figures(name, figures, console)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def figures_of(rounds: Rounds, min_length: int = 1) -> Figures:
    """All figures of a setting."""
    condition = Condition(rounds.setting.payload, min_length=min_length)
    return {
        "figure_6": figure_6(rounds, condition),
        "figure_7": figure_7(rounds, condition),
        "figure_8": figure_8(rounds, condition),
        "who_gets_band": who_gets_band(rounds, condition),
        "decision_ms": decision_times(rounds, condition),
        "payloads": payloads(rounds, condition),
    }


def print_figures(name: str, figures: Figures, console: Console) -> None:
    """The tables of a setting."""
    _print_figure_6(name, figures["figure_6"], console)
    stated = OVER_FIXED.get(name, {})
    title = f"{name}, figure 7: 20 users, {{what}}, by MHz"
    _print_gains(title, "MHz", figures["figure_7"], stated, console)
    title = f"{name}, figure 8: 10 MHz, {{what}}, by users"
    ends = {users: stated.get(f"{users} users", "") for users in figures["figure_8"]}
    _print_gains(title, "users", figures["figure_8"], ends, console)
    _print_band(name, figures["who_gets_band"], console)
    _print_times(name, figures["decision_ms"], console)
    _print_payloads(name, figures["payloads"], console)


def _print_figure_6(name: str, rules: Figures, console: Console) -> None:
    title = f"{name}, figure 6: 20 users, 10 MHz, tokens/s, heterogeneous's gain (95 %)"
    columns = ["rule", "ratio", "total", "gain over it, ratio", "total", "paper"]
    rows = {}
    for rule, one in rules.items():
        gain = one["heterogeneous_over_it"]
        cells = [_interval(value, 1) for value in one["goodput"].values()]
        cells += [_interval(gain["ratio"], 2), f"{gain['total']['value']:.2f}"]
        rows[rule] = [*cells, GOODPUT.get(name, {}).get(rule, "")]
    print_table(title, columns, rows, console)


def _print_gains(
    title: str, head: str, points: Figures, stated: Mapping[str, str], console: Console
) -> None:
    """Goodputs by the paper's figure, then gains by it, and the one over fixed by totals."""
    first = next(iter(points.values()))
    rows = {
        point: [f"{g['ratio']['value']:.1f}" for g in one["goodput"].values()]
        for point, one in points.items()
    }
    print_table(title.format(what="tokens/s"), [head, *first["goodput"]], rows, console)
    others = list(first["heterogeneous_over"])
    rows = {}
    for point, one in points.items():
        over = one["heterogeneous_over"]
        gains = [_interval(over[other]["ratio"], 2) for other in others]
        rows[point] = [*gains, _interval(over["fixed"]["total"], 2), stated.get(point, "")]
    columns = [head, *others, "fixed, total", "fixed, paper"]
    print_table(title.format(what="heterogeneous over others (95 %)"), columns, rows, console)


def _print_band(name: str, rules: Figures, console: Console) -> None:
    title = f"{name}: rank correlation of a user's share of the band with its own (95 %)"
    columns = ["rule", "spectral efficiency", "acceptance", "seconds per token"]
    rows = {rule: [_interval(one, 2) for one in by.values()] for rule, by in rules.items()}
    print_table(title, columns, rows, console)


def _print_times(name: str, rules: Figures, console: Console) -> None:
    title = f"{name}: ms of a decision for 20 users, median (p10-p90); the goal is {GOAL_MS:g}"
    rows = {
        rule: [
            cell
            for clock in by.values()
            for cell in (
                f"{clock['p50']:.2f} ({clock['p10']:.2f}-{clock['p90']:.2f})",
                f"{clock['fastest']:.2f}",
            )
        ]
        for rule, by in rules.items()
    }
    columns = ["rule", "by the clock", "fastest", "of the processor", "fastest"]
    print_table(title, columns, rows, console)


def _print_payloads(name: str, modes: Figures, console: Console) -> None:
    title = f"{name}: what smaller payloads save, heterogeneous, 20 users, 10 MHz"
    columns = ["payload", "bits/token", "drafted", "kbit/round", "ratio", "total", "over truncated"]
    rows = {
        mode: [
            f"{one['bits_per_token']:,}",
            f"{one['drafted_per_user']:.2f}",
            f"{one['bits_per_round']['value'] / 1e3:,.1f}",
            _interval(one["goodput"]["ratio"], 1),
            f"{one['goodput']['total']['value']:.1f}",
            "" if mode == "truncated" else _interval(one["over_truncated"]["ratio"], 2),
        ]
        for mode, one in modes.items()
    }
    print_table(title, columns, rows, console)


def _interval(one: Mapping[str, float], digits: int) -> str:
    value, low, high = (f"{one[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low}, {high})"


def _check(args: MultispinPaperArgs) -> None:
    for name in ("draws", "rounds"):
        if (value := getattr(args, name)) < 1:
            raise DraftgymError(f"--{name} is {value}", "give at least 1")
    if args.min_length not in (0, 1):
        raise DraftgymError(f"--min-length is {args.min_length}", "give 1, or 0 to allow skipping")
    if args.seed < 0:
        raise DraftgymError(f"--seed is {args.seed}", "give 0 or more")
    if not args.settings:
        raise DraftgymError("--settings names none", "leave it out for both settings")
    if args.json is not None:
        check_writable(args.json)


if __name__ == "__main__":
    with exit_on_user_error():
        evaluate(tyro.cli(MultispinPaperArgs, description=__doc__))
