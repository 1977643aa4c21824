"""The README's tables, from the results that `make figures` leaves in its folder.

    $ python -m benchmarks.system.figures_markdown --folder runs/figures-1a2b3c4d

prints Markdown: what is there of routing.json, arms.json, clock.json and speed.json. The words
around them are written by people.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.rollouts.report.rows import ALL

CATEGORIES = ("chat", "code", "math", "summary", "structured")
Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MarkdownArgs:
    """Which results.

    Attributes:
        folder: Folder of `make figures`.
    """

    folder: Path


def markdown(folder: Path) -> str:
    """All tables whose results are there.

    Raises:
        DraftgymError: None is there, or one is damaged.
    """
    parts = []
    for name, make in TABLES.items():
        path = folder / name
        if not path.exists():
            continue
        try:
            parts.append(make(json.loads(path.read_text(encoding="utf-8"))))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DraftgymError(
                f"{path} holds no such results: {error!r}",
                "delete it, and run `make figures` again",
            ) from error
    if not parts:
        raise DraftgymError(
            f"{folder} has none of {', '.join(TABLES)}", "name a folder that `make figures` filled"
        )
    return "\n\n".join(parts) + "\n"


def routing_tables(figures: Figures) -> str:
    """Routers on held-out traces, slowest first; then at another temperature and in transfer."""
    parts = [_routing_table("Held-out traces", figures["heldout"])]
    if "sampled" in figures:
        parts.append(_routing_table("Sampled texts", figures["sampled"]))
    if "transfer" in figures:
        parts.append(_transfer_table(figures["transfer"]))
    return "\n\n".join(parts)


def _routing_table(title: str, judged: Figures) -> str:
    named = {f"*{name}*": row for name, row in judged["knowing"].items()} | judged["routers"]
    rows = []
    for name, row in sorted(named.items(), key=lambda item: item[1]["gain"][0]):
        gain, low, high = row["gain"]
        cells = [_percent(row["by_category"].get(one, [None])[0]) for one in CATEGORIES]
        seeds = row.get("gain_by_seed", [])
        spread = f"{_percent(min(seeds))} to {_percent(max(seeds))}" if len(seeds) > 1 else ""
        rows.append(
            [
                name,
                *cells,
                f"**{_percent(gain)}**",
                f"{_percent(low)} to {_percent(high)}",
                spread,
                f"{100 * row['share_of_possible']:.0f} %",
            ]
        )
    head = ["who", *CATEGORIES, f"**{ALL}**", "95 %", "seeds", "share"]
    return _table(f"{title}: over `{judged['best_single']}`, in per cent", head, rows)


def _transfer_table(transfer: Figures) -> str:
    names = next(iter(transfer.values()))["routers"]
    rows = [
        [name, *(_percent(transfer[one]["routers"][name]["gain"][0]) for one in transfer)]
        for name in names
    ]
    return _table("Trained without the category it is tested on", ["who", *transfer], rows)


def arms_table(figures: Figures) -> str:
    """Acceptance length of every arm by category, and predicted speed-up; then the prizes."""
    rows = []
    for arm, groups in figures["arms"].items():
        lengths = [f"{groups[one]['acceptance_length']:.2f}" for one in CATEGORIES if one in groups]
        every = groups[ALL]
        speedup = f"{every['predicted_speedup']:.2f}"
        rows.append([f"`{arm}`", *lengths, f"**{every['acceptance_length']:.2f}**", speedup])
    there = [one for one in CATEGORIES if one in figures["prizes"]]
    head = ["arm", *there, f"**{ALL}**", "speed-up"]
    prizes = [
        [what, f"`{prize['best_single']}`"]
        + [_percent(figures["prizes"][one][what]["gain_in_time"]) for one in [*there, ALL]]
        for what, prize in figures["prizes"][ALL].items()
    ]
    return "\n\n".join(
        [
            _table("Acceptance length by arm", head, rows),
            _table("What routing can win", ["arms", "best single", *there, ALL], prizes),
        ]
    )


def clock_tables(figures: Figures) -> str:
    """Policies by the clock, slowest first, and the cost model's predictions by arm."""
    rows, best = {(row["policy"], row["category"]): row for row in figures["rows"]}, []
    every = [row for row in figures["rows"] if row["category"] == ALL]
    for row in sorted(every, key=lambda one: float(one["tokens_per_second"])):
        over = row["intervals"]["against_best"]
        single = [f"{rows[row['policy'], one]['speedup']:.2f}" for one in CATEGORIES]
        gains = [_percent(over[key] - 1) for key in ("value", "low", "high")]
        best.append(
            [
                f"`{row['policy']}`",
                f"{row['tokens_per_second']:.1f}",
                *single,
                f"**{row['speedup']:.2f}**",
                f"{gains[0]} ({gains[1]} to {gains[2]})",
                f"{row['identical_texts']}/{row['prompts']}",
            ]
        )
    over_best = f"over `{figures['best_single_arm']}`"
    head = ["who", "tokens/s", *CATEGORIES, "**over `plain`**", over_best, "same text"]
    costs = [
        [
            f"`{cost['arm']}`",
            f"{cost['rounds']:,}",
            f"{cost['predicted_seconds'] / cost['measured_seconds']:.2f}",
        ]
        for cost in figures["arm_costs"]
    ]
    return "\n\n".join(
        [
            _table("By the clock", head, best),
            _table("Cost model", ["arm", "rounds", "predicted / measured"], costs),
        ]
    )


def speed_table(figures: Figures) -> str:
    """Whole calls against `generate()` of transformers."""
    rows = {(row["contender"], row["category"]): row for row in figures["rows"]}
    made = []
    for (name, category), row in rows.items():
        if category != ALL:
            continue
        single = [f"{rows[name, one]['ratio']:.2f}" for one in CATEGORIES if (name, one) in rows]
        speed = f"{row['tokens_per_second']:.1f} ({row['p10']:.1f}-{row['p90']:.1f})"
        sure = f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}"
        made.append([name, speed, *single, f"**{row['ratio']:.2f}**", sure])
    head = ["who", "tokens/s (p10-p90)", *CATEGORIES, f"**{ALL}**", "95 %"]
    return _table("Against generate()", head, made)


TABLES: dict[str, Callable[[Figures], str]] = {
    "routing.json": routing_tables,
    "clock.json": clock_tables,
    "arms.json": arms_table,
    "speed.json": speed_table,
}
"""Result files, in the README's order, and what is made of them."""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", _line(head), _line(["---"] * len(head)), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    with exit_on_user_error():
        print(markdown(tyro.cli(MarkdownArgs, description=__doc__).folder), end="")
