"""The tables of `benchmarks.drafters.objectives`, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from benchmarks.drafters.measure import Condition
from benchmarks.routers.arms_tables import print_table
from draftgym.rollouts.report.rows import ALL

Objectives = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Figures by objective and condition (`objectives_figures.summarise`)."""

Cell = Callable[[Mapping[str, Any]], str]
"""Text of an objective's figures under one condition."""


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        title: What it shows.
        columns: Heads, the first of the names.
        rows: Cells by name.
    """

    title: str
    columns: list[str]
    rows: dict[str, list[str]]

    def markdown(self) -> str:
        """The table in Markdown, its title above it."""
        lines = [self.columns, ["---"] * len(self.columns)]
        lines += [[f"`{name}`", *cells] for name, cells in self.rows.items()]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"**{self.title}**\n\n{body}\n"


def sheets_of(
    objectives: Objectives,
    conditions: Sequence[Condition],
    references: Sequence[str],
    detail: str,
) -> list[Sheet]:
    """All tables.

    Args:
        objectives: The figures.
        conditions: Columns.
        references: Objectives that all are compared with, the baseline first.
        detail: The shape that is shown category by category.
    """
    lengths = _sheet(
        "acceptance length: tokens a round commits, the target's own included (lowest to highest "
        "seed); under rejection, tokens over expected rounds",
        objectives,
        conditions,
        _length,
    )
    over = [
        _sheet(
            f"acceptance length over {reference}, in % (95 % over prompts, seed of median length)",
            {name: rows for name, rows in objectives.items() if name != reference},
            conditions,
            partial(_gain, reference),
        )
        for reference in references
    ]
    positions = _sheet(
        "tokens a round would commit, mean over all positions of the texts (not over rounds)",
        objectives,
        conditions,
        lambda found: f"{found['over_positions']:.3f}",
    )
    by_category = [
        _by_category(objectives, condition, references[0])
        for condition in conditions
        if condition.shape == detail
    ]
    sheets = [lengths, *over, *by_category, positions]
    first = next(iter(objectives.values()))
    priced = [one for one in conditions if "predicted_speedup" in first[str(one)]]
    if priced:
        title = "speed over plain decoding by the cost model"
        sheets.append(
            _sheet(title, objectives, priced, lambda found: f"{found['predicted_speedup']:.3f}")
        )
    return [sheet for sheet in sheets if sheet.rows]


def print_sheets(sheets: Sequence[Sheet], console: Console) -> None:
    """Prints all tables."""
    for sheet in sheets:
        console.print()
        print_table(sheet.title, sheet.columns, sheet.rows, console)


def _sheet(
    title: str, objectives: Objectives, conditions: Sequence[Condition], cell: Cell
) -> Sheet:
    """One row per objective, one column per condition."""
    columns = ["objective", *map(str, conditions)]
    rows = {
        name: [cell(found[str(condition)]) for condition in conditions]
        for name, found in objectives.items()
    }
    return Sheet(title, columns, rows)


def _by_category(objectives: Objectives, condition: Condition, baseline: str) -> Sheet:
    groups = list(next(iter(objectives.values()))[str(condition)]["groups"])
    rows = {}
    for name, row in objectives.items():
        found = [row[str(condition)]["groups"][group] for group in groups]
        rows[name] = [
            f"{one['acceptance_length']:.2f} ({100 * one['over'][baseline][0]:+.1f})"
            for one in found
        ]
    title = f"{condition}, by category: acceptance length (over {baseline} in %)"
    return Sheet(title, ["objective", *groups], rows)


def _length(found: Mapping[str, Any]) -> str:
    seeds = found["acceptance_by_seed"]
    length = f"{found['groups'][ALL]['acceptance_length']:.3f}"
    return length if len(seeds) == 1 else f"{length} ({min(seeds):.3f} to {max(seeds):.3f})"


def _gain(reference: str, found: Mapping[str, Any]) -> str:
    value, low, high = (f"{100 * one:+.1f}" for one in found["groups"][ALL]["over"][reference])
    return f"{value} ({low} to {high})"  # spaces: narrow tables fold here
