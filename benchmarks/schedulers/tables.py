"""The tables of `benchmarks.schedulers.schedulers`, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.schedulers.figures import (
    AIM_OVER_CLOSED_FORM,
    AIM_OVER_FIXED,
    Aim,
    Outcome,
    Row,
    Verdict,
)
from draftgym.rollouts.report.statistics import Interval

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
SPEED_HEAD = ("who", "tokens/s", "over fixed", "over het", "share", "mean of ratios")
SERVICE_HEAD = ("who", "Jain", "user p10 p50 p90", "s/token p50 p95 p99", "wasted")
VERDICT_HEAD = (
    "cells",
    "who",
    "over fixed",
    "best closed form",
    "over it",
    f">= {AIM_OVER_CLOSED_FORM}",
    "share",
)


@dataclass(frozen=True)
class Sheet:
    """A table that can be printed in two ways.

    Attributes:
        title: What it shows.
        head: Names of the columns.
        rows: Cells; a line break is a space in Markdown.
        bold: Rows that stand out.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[int] = frozenset()

    def print(self, console: Console) -> None:
        """Prints it."""
        table = Table(
            box=box.SIMPLE_HEAD, title=self.title, title_justify="left", padding=(0, 1, 0, 0)
        )
        for index, name in enumerate(self.head):
            # Names must stay whole in a narrow window; figures can go on in another line.
            table.add_column(
                name, justify="right" if index else "left", no_wrap=not index, overflow="fold"
            )
        for index, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if index in self.bold else None)
        console.print(table)

    def markdown(self) -> str:
        """The table in Markdown, its title in bold above it."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)]]
        for index, (name, *cells) in enumerate(self.rows):
            lines.append([f"**{name}**" if index in self.bold else name, *cells])
        drawn = (f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines)
        return "\n".join([f"**{self.title}**", "", *drawn])


def print_outcomes(outcomes: Sequence[Outcome], aims: Sequence[Aim], console: Console) -> None:
    """All tables, the summary last."""
    for sheet in [*chain.from_iterable(map(_scenario_sheets, outcomes)), *_summary(outcomes)]:
        console.print()
        sheet.print(console)
    console.print(LEGEND, style="dim", highlight=False)
    for line in aim_lines(aims):
        console.print(line, highlight=False, markup=False)


def markdown(outcomes: Sequence[Outcome], aims: Sequence[Aim]) -> str:
    """All tables in Markdown, the summary first."""
    parts = [sheet.markdown() for sheet in _summary(outcomes)]
    parts.append("\n".join(f"* {line}" for line in aim_lines(aims)))
    for outcome in outcomes:
        parts += [sheet.markdown() for sheet in _scenario_sheets(outcome)]
    return "\n\n".join([*filter(None, parts), LEGEND]) + "\n"


def aim_lines(aims: Sequence[Aim]) -> list[str]:
    """A sentence for every aim."""
    return [
        f"{one.name} {one.what}: aim {one.aim} {'met' if one.reached else 'NOT met'} in {one.met} "
        f"of {one.scenarios}; lowest {interval(one.lowest)} ({one.where})"
        for one in aims
    ]


def interval(value: Interval | None, digits: int = 3) -> str:
    """A figure and its interval; empty without one."""
    if value is None:
        return ""
    ends = f"{value.low:.{digits}f} to {value.high:.{digits}f}"
    return f"{value.value:.{digits}f} ({ends})"


def _scenario_sheets(outcome: Outcome) -> list[Sheet]:
    """How fast everybody was, and how users fared."""
    best = max(range(len(outcome.rows)), key=lambda index: outcome.rows[index].goodput.value)
    gain = f"a length for each wins x {outcome.heterogeneity:.3f} over one for all"
    speed, service = zip(*map(_row_cells, outcome.rows), strict=True)
    return [
        Sheet(f"{outcome.scenario}; {gain}", SPEED_HEAD, speed, frozenset([best])),
        Sheet(f"{outcome.scenario}: users", SERVICE_HEAD, service, frozenset([best])),
    ]


def _row_cells(row: Row) -> tuple[list[str], list[str]]:
    seeds = len(row.goodput_by_seed)
    name = f"{row.name} ({seeds} seeds)" if seeds > 1 else row.name
    over = row.mean_of_ratios_over_fixed
    speed = [
        _folded(row.goodput, 2),
        _folded(row.over_fixed),
        _folded(row.over_closed_form),
        _percent(row.share),
        f"{row.mean_of_ratios.value:.2f}\n(x {over.value:.3f})",
    ]
    service = [
        f"{row.fairness:.3f}",
        " ".join(f"{rate:.2f}" for rate in row.user_rates),
        " ".join(f"{seconds:.3f}" for seconds in row.token_latency.values()),
        f"{row.wasted:.0%}",
    ]
    return [name, *speed], [name, *service]


def _summary(outcomes: Sequence[Outcome]) -> list[Sheet]:
    """Who was trained, and the oracle, in every scenario; nothing if neither played."""
    widest = max(outcomes, key=lambda one: one.heterogeneity)
    rows: list[list[str]] = []
    bold = set()
    for outcome in outcomes:
        for verdict in outcome.verdicts:
            if verdict.trained:
                bold.add(len(rows))
            rows.append(_verdict_cells(outcome, verdict, outcome is widest))
    title = (
        f"Over the best closed form with an estimate (over fixed: aim {AIM_OVER_FIXED} at (most))"
    )
    return [Sheet(title, VERDICT_HEAD, rows, frozenset(bold))] if rows else []


def _verdict_cells(outcome: Outcome, verdict: Verdict, widest: bool) -> list[str]:
    reached = verdict.over_fixed.value >= AIM_OVER_FIXED
    aim = f" {'yes' if reached else 'no'}" if widest and verdict.trained else ""
    met = "yes" if verdict.over_closed_form.value >= AIM_OVER_CLOSED_FORM else "no"
    return [
        f"{outcome.scenario}{' (most)' if widest else ''}",
        verdict.name,
        _folded(verdict.over_fixed) + aim,
        verdict.closed_form,
        _folded(verdict.over_closed_form),
        met if verdict.trained else "",
        _percent(verdict.share),
    ]


def _folded(value: Interval, digits: int = 3) -> str:
    """A figure above its interval."""
    return interval(value, digits).replace(" (", "\n(", 1)


def _percent(value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{value.value:.0%}\n({value.low:.0%} to {value.high:.0%})"
