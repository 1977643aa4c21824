"""Tables of the comparison of who chooses for batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.report import Json, Table, number
from benchmarks.serving.batch_contenders import ALL, MEAN, ORACLE


def tables(result: Json) -> list[Table]:
    """Identical requests by size, load by rate, speed."""
    made = [cells(result["identical"]), over_one_rule(result["identical"])]
    for size in dict.fromkeys(row["size"] for row in result["identical"]):
        rows = [row for row in result["identical"] if row["size"] == size]
        kinds = list(rows[0]["best"])
        made.append(
            Table.of(
                f"{size} identical requests: tokens per second over plain",
                rows,
                {
                    "who": number("who", ""),
                    **{kind: number(kind) for kind in kinds},
                    f"over {rows[0]['best'][ALL][0]}": lambda row: _against(row, ALL),
                },
            )
        )
    for share in dict.fromkeys(row["load"] for row in result["load"]):
        made.append(
            Table.of(
                f"Under load, {share:.0%} of what the table by size bears",
                [row for row in result["load"] if row["load"] == share],
                {
                    "who": number("who", ""),
                    "tokens per busy second": number("goodput", ".0f"),
                    "first token, p50 ms": number("first_50", ".0f"),
                    "p95": number("first_95", ".0f"),
                    "each token, p50 ms": number("each_50", ".2f"),
                    "p95 ": number("each_95", ".2f"),
                },
            )
        )
    if result["speed"]:
        columns = {name: number(name, ",.0f") for name in result["speed"][0]}
        made.append(Table.of("Request-rounds a second in replay", result["speed"], columns))
    return made


def cells(rows: Sequence[Json]) -> Table:
    """The forecasts against the rule that is best at this size on this kind of text."""
    told = [
        {**row, "kind": kind, "rule": row["best"][kind][0]}
        for row in rows
        if row["who"] == MEAN
        for kind in row["best"]
    ]
    best = {(row["size"], row["who"]): row for row in rows}
    return Table.of(
        "Forecasts against the best rule of each cell, chosen in hindsight",
        told,
        {
            "requests": number("size", ""),
            "texts": number("kind", ""),
            "best rule": lambda row: f"`{row['rule']}`",
            "over plain": lambda row: f"{best[row['size'], row['rule']][row['kind']]:.3f}",
            "forecasts over plain": lambda row: f"{row[row['kind']]:.3f}",
            "over the rule": lambda row: _against(row, row["kind"]),
            "oracle over plain": lambda row: f"{best[row['size'], ORACLE][row['kind']]:.3f}",
        },
    )


def over_one_rule(rows: Sequence[Json]) -> Table:
    """Everybody over all texts by size, and how much over the rule that is best on average."""
    speeds: dict[str, dict[int, float]] = {}
    for row in rows:
        speeds.setdefault(row["who"], {})[row["size"]] = row[ALL]
    means = {who: float(np.exp(np.log(list(its.values())).mean())) for who, its in speeds.items()}
    rules = [who for who in means if not who.startswith(("forecast", ORACLE))]
    best = max(rules, key=lambda who: means[who])
    told = [
        {"who": who, **{str(size): speed for size, speed in speeds[who].items()}, "over": mean}
        for who, mean in sorted(means.items(), key=lambda one: -one[1])
    ]
    columns = {"who": number("who", "")} | {str(size): number(str(size)) for size in speeds[best]}
    return Table.of(
        f"All texts over plain, by requests; the mean over {best}",
        told,
        columns | {"mean": lambda row: f"{row['over'] / means[best] - 1:+.1%}"},
    )


def _against(row: Json, kind: str) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*row["best"][kind][1:])
