"""One writer for all measurements: tables out of JSON, for the terminal and in Markdown.

    $ python -m benchmarks.report runs/routing.json runs/arms.json > tables.md

A benchmark is a module that measures, writes a JSON file naming itself (`"benchmark"`), and tells
its tables in `tables(result)`. So any result file becomes Markdown again later; so does the file
that `draftgym evaluate --json` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import tyro
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import read_json
from draftgym.decoding.provenance import machine_of
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.statistics import Interval
from draftgym.rollouts.report.table import make_console

Json = Mapping[str, Any]
Cell = Callable[[Any], str]
"""The text of a cell, given its row's figures."""


def titled(result: Json) -> dict[str, Any]:
    """What titles are filled with: the environment, and what it ran on as `machine`."""
    facts = result["environment"]
    return {**facts, "machine": machine_of(facts)}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: What it shows.
        head: Names of the columns; the first one names the rows.
        rows: Cells; a line break is a space in Markdown.
        bold: Rows that stand out.
        notes: Lines below it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[int] = frozenset()
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        title: str,
        rows: Iterable[Any],
        columns: Mapping[str, Cell],
        best: Callable[[Any], float] | None = None,
        notes: Sequence[str] = (),
    ) -> Self:
        """A table with one row of figures per line.

        Args:
            title: What it shows.
            rows: Figures.
            columns: How each column tells them.
            best: The row with the highest of these stands out.
            notes: Lines below it.
        """
        rows = list(rows)
        bold = [max(range(len(rows)), key=lambda i: best(rows[i]))] if best and rows else []
        cells = [[tell(row) for tell in columns.values()] for row in rows]
        return cls(title, list(columns), cells, frozenset(bold), notes)

    @classmethod
    def named(
        cls, title: str, head: str, rows: Mapping[str, Any], columns: Mapping[str, Cell]
    ) -> Self:
        """A table with one row per name, which the first column tells.

        Args:
            title: What it shows.
            head: What the names are.
            rows: Figures by name.
            columns: How each other column tells them.
        """
        cells = [[name, *(tell(one) for tell in columns.values())] for name, one in rows.items()]
        return cls(title, [head, *columns], cells)

    def print(self, console: Console) -> None:
        """Prints it."""
        table = RichTable(
            box=box.SIMPLE_HEAD, title=self.title, title_justify="left", padding=(0, 1, 0, 0)
        )
        for index, name in enumerate(self.head):
            # Names must stay whole in a narrow window; figures can go on in another line.
            table.add_column(
                name, justify="right" if index else "left", no_wrap=not index, overflow="fold"
            )
        for index, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if index in self.bold else None)
        console.print()
        console.print(table)
        for line in self.notes:
            console.print(line, style="dim", highlight=False, markup=False)

    def markdown(self) -> str:
        """The table in Markdown, its title in bold above it, its notes as a list below."""
        lines = [list(self.head), ["---", *["---:"] * (len(self.head) - 1)]]
        for index, row in enumerate(self.rows):
            mark = "**" if index in self.bold else ""
            cells = [" ".join(cell.split()) for cell in row]
            lines.append([f"{mark}{cell}{mark}" if cell else "" for cell in cells])
        parts = ["**" + " ".join(self.title.split()) + "**"]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append("\n".join(f"* {line}" for line in self.notes))
        return "\n\n".join(filter(None, parts))


def each(names: Iterable[str], tell: Callable[[Any, str], str]) -> dict[str, Cell]:
    """A column for every name, told by the row's figures and the name."""

    def column(name: str) -> Cell:
        return lambda row: tell(row, name)

    return {name: column(name) for name in names}


def number(key: str, form: str = ".2f") -> Cell:
    """A cell with the figure under a key; empty where there is none."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:{form}}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share or a gain in per cent, with its sign."""
    return "" if share is None else f"{100 * share:+.{digits}f}"


def interval(one: Interval | Json | Sequence[float] | None, form: str = ".3f") -> str:
    """A figure above its interval; empty without one."""
    if one is None:
        return ""
    value, low, high = ends(one)
    return f"{value:{form}}\n({low:{form}} to {high:{form}})"


def ends(one: Interval | Json | Sequence[float]) -> tuple[float, float, float]:
    """Value, lower and upper end of an interval, whatever form it has."""
    if isinstance(one, Interval):
        return one.value, one.low, one.high
    value, low, high = (one["value"], one["low"], one["high"]) if isinstance(one, Mapping) else one
    return value, low, high


def tables_of(result: Json) -> list[Table]:
    """All tables of a result.

    Raises:
        DraftgymError: No benchmark wrote it.
    """
    if "arm_costs" in result:
        return evaluation_tables(result)
    name = str(result.get("benchmark"))
    if not name.startswith("benchmarks.") or find_spec(name) is None:
        raise DraftgymError("no benchmark is named in it", "measure again with this version")
    return list(import_module(name).tables(result))


def evaluation_tables(result: Json) -> list[Table]:
    """What `draftgym evaluate --json` measured: policies by the clock, slowest first, and costs.

    Beside other engines the strongest of them is first.
    """
    rows = {(row["policy"], row["category"]): row for row in result["rows"]}
    categories = [name for name in dict.fromkeys(name for _, name in rows) if name != ALL]
    every = [row for (_, category), row in rows.items() if category == ALL]
    columns: dict[str, Cell] = {
        "who": lambda row: f"`{row['policy']}`",
        "tokens/s": number("tokens_per_second", ".1f"),
        **each(categories, lambda row, name: f"{rows[row['policy'], name]['speedup']:.2f}"),
        "over `plain`": number("speedup"),
        f"over `{result['best_single_arm']}`": lambda row: over_one(
            row["intervals"]["against_best"]
        ),
        "same text": lambda row: f"{row['identical_texts']}/{row['prompts']}",
    }
    speed = sorted(every, key=itemgetter("tokens_per_second"))
    costs: dict[str, Cell] = {
        "arm": lambda cost: f"`{cost['arm']}`",
        "rounds": number("rounds", ","),
        "predicted / measured": lambda cost: (
            f"{cost['predicted_seconds'] / cost['measured_seconds']:.2f}"
        ),
    }
    return [
        Table.of("By the clock", speed, columns, itemgetter("tokens_per_second")),
        *_calls_tables(result),
        Table.of("Cost model", result["arm_costs"], costs),
    ]


def _calls_tables(result: Json) -> list[Table]:
    """Whole calls of policies and peers, where there were any."""
    rows = {(row["who"], row["category"]): row for row in result.get("calls", [])}
    categories = [name for name in dict.fromkeys(name for _, name in rows) if name != ALL]
    every = [row for (_, category), row in rows.items() if category == ALL]
    if not every:
        return []
    columns: dict[str, Cell] = {
        "who": number("who", ""),
        "weights": number("weights", ""),
        "tokens/s": number("tokens_per_second", ".1f"),
        "p10 to p90": lambda row: f"{row['p10']:.1f} to {row['p90']:.1f}",
        **each(categories, lambda row, name: f"{rows[row['who'], name]['ratio']['value']:.2f}"),
        "ratio": lambda row: interval(row["ratio"], ".2f"),
        "median": lambda row: interval(row["median_ratio"], ".2f"),
        "same text": lambda row: f"{row['identical_texts']}/{row['prompts']}",
    }
    title = (
        "Beside other engines: {target}, {dtype}, threads {threads}; {machine}; up to "
        "{max_new_tokens} tokens"
    )
    notes = [
        "whole calls, prompt included; p10 to p90: of single prompts; ratio: to "
        f"{every[0]['who']}, totals over totals, and the median of single prompts, each with its "
        "95 % interval (paired bootstrap over prompts); same text: prompts whose tokens are plain "
        "decoding's"
    ]
    return [Table.of(title.format(**titled(result)), every, columns, notes=notes)]


def over_one(ratio: Interval | Json | Sequence[float]) -> str:
    """A ratio with its interval as a gain in per cent."""
    value, low, high = (percent(one - 1) for one in ends(ratio))
    return f"{value}\n({low} to {high})"


def show(tables: Iterable[Table], console: Console | None = None) -> None:
    """Prints tables on the terminal."""
    console = console or make_console()
    for table in tables:
        table.print(console)


def markdown(path: Path) -> str:
    """The Markdown of a result file.

    Raises:
        DraftgymError: It cannot be read, or is no result.
    """
    remedy = "name JSON files that benchmarks wrote, or run the benchmark again"
    try:
        result = read_json(path, remedy)
        return "\n\n".join(table.markdown() for table in tables_of(result)) + "\n"
    except OSError as error:
        raise DraftgymError(f"cannot read {path}: {error.strerror}", remedy) from error
    except DraftgymError as error:
        raise DraftgymError(f"{path} holds no results: {error.problem}", error.remedy) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DraftgymError(f"{path} holds no such results: {error!r}", remedy) from error


@dataclass(frozen=True)
class ReportArgs:
    """Print results as Markdown.

    Attributes:
        results: JSON files of benchmarks.
    """

    results: tyro.conf.Positional[tuple[Path, ...]]


if __name__ == "__main__":
    with exit_on_user_error():
        print("\n".join(map(markdown, tyro.cli(ReportArgs, description=__doc__).results)), end="")
