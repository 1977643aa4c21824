"""The tables of `benchmarks.routers.arms`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

CHOICES = {
    "best_of_category": "best arm of each category",
    "best_of_prompt": "best arm of each prompt",
    "greedy_oracle": "greedy oracle, round by round",
    "exact_oracle": "exact oracle",
}
"""Choices that know more and more, as `benchmarks.routers.arms` calls them and in words."""


def print_figures(figures: Mapping[str, Any], console: Console) -> None:
    """All tables.

    Args:
        figures: As `benchmarks.routers.arms` writes them.
        console: Where to print.
    """
    origin = figures["traces"]
    counts = ", ".join(f"{count} {name}" for name, count in figures["texts"].items())
    console.print(
        f"\n{origin['target']}, {origin['dtype']}; texts: {counts}; up to "
        f"{origin['max_new_tokens']} tokens, temperature {origin['temperature']:g}"
    )
    groups = list(figures["prizes"])
    _print_arms(figures["arms"], groups, console)
    _print_duels(figures["duels"], console)
    _print_prizes(figures["prizes"], console)
    _print_choices(figures["choices"], console)


def _print_arms(arms: Mapping[str, Any], groups: Sequence[str], console: Console) -> None:
    for key, title in [
        ("acceptance_length", "acceptance length: committed tokens per round, bonus included"),
        ("predicted_speedup", "speed-up over plain decoding by the cost model"),
    ]:
        rows = {
            arm: [f"{by_group[name][key]:.2f}" for name in groups] for arm, by_group in arms.items()
        }
        print_table(title, ["arm", *groups], rows, console)


def _print_duels(duels: Mapping[str, Any], console: Console) -> None:
    rows = {
        pair: [f"{100 * d['first']:.0f}/{100 * d['second']:.0f}" for d in by_part.values()]
        for pair, by_part in duels.items()
    }
    if rows:  # two drafters or more
        columns = ["arms", *next(iter(duels.values()))]
        title = "who commits more, % of positions (first / second; the rest are ties)"
        print_table(title, columns, rows, console)


def _print_prizes(prizes: Mapping[str, Any], console: Console) -> None:
    rows = {}
    for what, overall in prizes["all"].items():
        gains = [_percent(by_set[what]["gain_in_time"]) for by_set in prizes.values()]
        rows[what] = [*gains, _percent(overall["gain_in_acceptance_length"])]
    title = "the prize: exact oracle over the best single arm of each set there, % of speed"
    print_table(title, ["arms", *prizes, "all, in tokens"], rows, console)


def _print_choices(choices: Mapping[str, Any], console: Console) -> None:
    rows = {
        words: [_percent(by_choice[key]) for by_choice in choices.values()]
        for key, words in CHOICES.items()
    }
    single = choices["all"]["single"]
    title = f"who knows how much: gain over always {single}, % of speed; all arms and plain"
    print_table(title, ["choice", *choices], rows, console)


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"


def print_table(
    title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]], console: Console
) -> None:
    """A table with one row per name; `columns` names the first column, too."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
