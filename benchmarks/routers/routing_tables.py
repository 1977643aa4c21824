"""The tables of `benchmarks.routers.routing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_figures(figures: Mapping[str, Any], console: Console) -> None:
    """All tables."""
    texts = figures["texts"]
    console.print(
        f"\ntrained on {texts['train']} texts, tested on {texts['heldout']}; "
        f"arms: {' '.join(figures['arms'])}"
    )
    _print_judged("held-out texts", figures["heldout"], console)
    if "sampled" in figures:
        _print_judged("held-out texts at another temperature", figures["sampled"], console)
    for category, judged in figures.get("transfer", {}).items():
        _print_judged(f"transfer to {category}", _learned(judged), console)


def _print_judged(title: str, judged: Mapping[str, Any], console: Console) -> None:
    rows = {**judged["routers"], **judged["knowing"]}
    categories = list(next(iter(rows.values()))["by_category"])
    console.print(
        f"\n{title}: speed over the best single arm there ({judged['best_single']}) in %, its 95 % "
        "interval over prompts, the spread over seeds, and the share of the possible gain"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ["who", *categories, "all", "95 %", "seeds", "share"]
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for name, row in sorted(rows.items(), key=lambda item: item[1]["gain"][0]):
        table.add_row(name, *_cells(row, categories))
    console.print(table)


def _cells(row: Mapping[str, Any], categories: Sequence[str]) -> list[str]:
    gain, low, high = row["gain"]
    seeds = row.get("gain_by_seed", [])
    return [
        *(f"{100 * row['by_category'][category][0]:+.1f}" for category in categories),
        f"{100 * gain:+.1f}",
        f"{100 * low:+.1f}..{100 * high:+.1f}",
        f"{100 * min(seeds):+.1f}..{100 * max(seeds):+.1f}" if len(seeds) > 1 else "",
        f"{100 * row['share_of_possible']:.0f} %",
    ]


def _learned(judged: Mapping[str, Any]) -> dict[str, Any]:
    """Without the single arms, which the first table has."""
    routers = {name: row for name, row in judged["routers"].items() if "," in name}
    return {**judged, "routers": routers}
