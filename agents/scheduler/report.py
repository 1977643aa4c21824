"""How a comparison of schedulers is shown: a table for the terminal, and a page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from draftgym.decoding.files import write_json, write_text
from draftgym.rollouts.report.html_tables import facts_list, interval_cell, table
from draftgym.rollouts.report.page import HERE, PAGE, draw_both, figure_element, section
from draftgym.rollouts.report.palette import colours_of
from draftgym.rollouts.report.plots import grouped_bars
from draftgym.rollouts.report.statistics import Interval
from draftgym.rollouts.report.table import make_console

if TYPE_CHECKING:
    from draftgym.agents.scheduler.evaluation import ArmUse, SchedulerRow

LEGEND = (
    "tokens/s: total tokens over total seconds of a cell. over first: the same over the first "
    "scheduler's, with a 95 % paired bootstrap over cells. mean of ratios: mean over rounds of "
    "tokens/s, the papers' figure, which hardly notices rounds that take long. user: tokens/s of "
    "single users. Jain: fairness among the users of a cell, at most 1. s/token: seconds that a "
    "token took, by percentile of tokens. wasted: drafted tokens that were not accepted."
)
USE_LEGEND = (
    "Shares of the time: draft and upload are those of the user that came last; all others wait "
    "for it. Users of each arm: share of their rounds with a draft, tokens drafted and committed "
    "in a round."
)

COLUMNS = (
    ("scheduler", ""),
    ("tokens / s", "total tokens over total seconds of a cell"),
    ("over first", "with its 95 % interval, paired over cells"),
    ("mean of ratios", "mean over rounds of tokens per second, the papers' figure"),
    ("over first", "the same over the first scheduler's"),
    ("user p10, p50, p90", "tokens per second of single users"),
    ("Jain", "fairness among the users of a cell, at most 1"),
    ("s / token p50, p95, p99", "by percentile of tokens"),
    ("wasted", "drafted tokens that were not accepted"),
)
"""Columns of the page with what they mean."""


def print_schedulers(
    facts: Mapping[str, Any], rows: Sequence[SchedulerRow], console: Console | None = None
) -> None:
    """Prints the table with its legend.

    Args:
        facts: What was measured.
        rows: Figures, the reference first.
        console: Where to; by default standard output.
    """
    console = console or make_console()
    cell = facts["cell"]
    title = (
        f"{cell['users']} users of {cell['setting']}, target {facts['target']}, "
        f"{facts['cells']} cells of {facts['rounds']} rounds"
    )
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    shown.add_column("scheduler", style="cyan", overflow="fold")
    names = ["tokens/s", "over first", "mean of\nratios", "user p10\np50 p90", "Jain"]
    for name in [*names, "s/token\np50 p95 p99", "wasted"]:
        shown.add_column(name, justify="right")
    best = max(row.goodput for row in rows)
    for row in rows:
        style = "bold" if row.goodput == best else None
        shown.add_row(row.scheduler, *_cells(row), style=style)
    console.print()
    console.print(shown)
    console.print(LEGEND, style="dim", highlight=False)
    _print_use(rows, console)


def _print_use(rows: Sequence[SchedulerRow], console: Console) -> None:
    """Where the time went and who drafted."""
    title = "where the time goes, and who drafts"
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    shown.add_column("scheduler", style="cyan", overflow="fold")
    pieces = _pieces(rows)
    for name in [*pieces, *(f"{arm}: rounds,\ndrafted, committed" for arm in rows[0].arms)]:
        shown.add_column(name, justify="right")
    for row in rows:
        shares = [f"{row.time[name]:.1%}" for name in pieces]
        shown.add_row(row.scheduler, *shares, *map(_use, row.arms.values()))
    console.print(shown)
    console.print(USE_LEGEND, style="dim", highlight=False)


def _pieces(rows: Sequence[SchedulerRow]) -> list[str]:
    """Pieces of a round that took anybody any time."""
    return [name for name in rows[0].time if any(row.time[name] > 0 for row in rows)]


def _use(arm: ArmUse) -> str:
    return f"{arm.drafting:.0%}, {arm.drafted:.2f}, {arm.committed:.2f}"


def write_scheduler_report(
    folder: Path, facts: Mapping[str, Any], rows: Sequence[SchedulerRow], body: Mapping[str, Any]
) -> Path:
    """Writes `index.html`, `figures.json` and the plots as `.svg`; returns the page.

    Args:
        folder: Where to; made if it does not exist.
        facts: What was measured.
        rows: Figures, the reference first.
        body: What goes into `figures.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "figures.json", body)
    first = rows[0].scheduler
    speed = {row.scheduler: [row.over_first, row.mean_of_ratios_over_first] for row in rows}
    latency = {
        row.scheduler: [Interval(value, value, value) for value in row.token_latency.values()]
        for row in rows
    }
    plots = {
        "goodput": _bars(f"Goodput over {first}", ["total", "mean of ratios"], speed, "times", 1.0),
        "latency": _bars("Seconds per token", list(rows[0].token_latency), latency, "seconds"),
    }
    for name, (wide, _) in plots.items():
        write_text(folder / f"{name}.svg", wide)
    title = f"{len(rows)} schedulers of {facts['cell']['users']} users"
    sections = [
        f"<header><h1>{escape(title)}</h1><p>{escape(facts['cell']['setting'])}</p></header>",
        section("What was measured", facts_list(_flat(facts))),
        section("Goodput", figure_element(plots["goodput"])),
        section("Figures", table(COLUMNS, [_html_cells(row) for row in rows])),
        section("Where the time goes, and who drafts", _use_table(rows)),
        section("Latency", figure_element(plots["latency"])),
    ]
    style = (HERE / "report.css").read_text(encoding="utf-8")
    page = folder / "index.html"
    body_text = "\n".join(sections)
    write_text(page, PAGE.format(title=escape(title), style=style, body=body_text, script=""))
    return page


def _bars(
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Interval]],
    label: str,
    reference: float | None = None,
) -> tuple[str, str]:
    colours = colours_of(list(series))
    return draw_both(
        title.partition(" ")[0].lower(),
        lambda n: grouped_bars(title, groups, series, label, reference, colours, narrow=n),
    )


def _cells(row: SchedulerRow) -> list[str]:
    over = row.over_first
    return [
        f"{row.goodput:.2f}",
        f"{over.value:.3f}\n({over.low:.3f} to {over.high:.3f})",
        f"{row.mean_of_ratios:.2f}\n({row.mean_of_ratios_over_first.value:.3f})",
        " ".join(f"{rate:.2f}" for rate in row.user_rates),
        f"{row.fairness:.3f}",
        " ".join(f"{seconds:.2f}" for seconds in row.token_latency.values()),
        f"{row.wasted:.0%}",
    ]


def _html_cells(row: SchedulerRow) -> list[str]:
    return [
        escape(row.scheduler),
        f"{row.goodput:.2f}",
        interval_cell(row.over_first, "&times;"),
        f"{row.mean_of_ratios:.2f}",
        interval_cell(row.mean_of_ratios_over_first, "&times;"),
        ", ".join(f"{rate:.2f}" for rate in row.user_rates),
        f"{row.fairness:.3f}",
        ", ".join(f"{seconds:.3f}" for seconds in row.token_latency.values()),
        f"{row.wasted:.1%}",
    ]


def _use_table(rows: Sequence[SchedulerRow]) -> str:
    """Where the time went and who drafted, for the page."""
    pieces = _pieces(rows)
    columns = [("scheduler", ""), *((name, "share of the time") for name in pieces)]
    columns += [(arm, "rounds with a draft, tokens drafted, committed") for arm in rows[0].arms]
    lines = [
        [escape(row.scheduler)]
        + [f"{row.time[name]:.1%}" for name in pieces]
        + [_use(arm) for arm in row.arms.values()]
        for row in rows
    ]
    return f'<p class="note">{escape(USE_LEGEND)}</p>{table(columns, lines)}'


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without nesting, and without what was not set."""
    cell = {f"cell {name}": value for name, value in facts["cell"].items()}
    flat = {key: value for key, value in facts.items() if key != "cell"} | cell
    return {key: value for key, value in flat.items() if value not in (None, [], ())}
