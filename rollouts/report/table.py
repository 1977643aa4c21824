"""Tables for people: what an evaluation found, and what happened in a text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.decoder import Generation
from draftgym.decoding.model.target import Target
from draftgym.rollouts.report.calls import CallRow, baseline_told
from draftgym.rollouts.report.rows import ALL, Difference, Row
from draftgym.rollouts.report.stalls import Stall, stalls_told

MAX_DIFFERENCES = 12
"""Differences that are printed; the JSON file holds all."""


PIPE_WIDTH = 110
"""Columns where no terminal says how many there are."""


def make_console(stderr: bool = False) -> Console:
    """A console on standard output or error, wide enough for the tables when it is a file."""
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(stderr=stderr, width=PIPE_WIDTH)
    return console


def print_report(
    environment: Mapping[str, Any],
    rows: Sequence[Row],
    differences: Sequence[Difference],
    stalls: Sequence[Stall] = (),
    console: Console | None = None,
    calls: Sequence[CallRow] = (),
) -> None:
    """The table of an evaluation with its legend, arms and differences.

    Args:
        environment: As `evaluate.py` writes it; may be empty.
        rows: Rows of one category are neighbours.
        differences: Texts that are not plain decoding's.
        stalls: Texts at which the machine stood still.
        console: Where to print; by default standard output.
        calls: Policies beside other engines.
    """
    console = console or make_console()
    console.print()
    console.print(evaluation_table(environment, rows))
    console.print(
        "tokens/round: committed tokens per target pass. tokens/s: decoding without prefill. "
        "speed-up: over plain decoding of the same prompts in this run, totals over totals; median "
        "and p10-p90: over single prompts. same text: prompts whose tokens are all plain "
        "decoding's.",
        style="dim",
        highlight=False,
    )
    for line in [*_prompts_told(environment), *stalls_told(stalls)]:
        console.print(line, highlight=False, markup=False)
    _print_arms(rows, console)
    if calls:
        _print_calls(calls, console)
    _print_differences(environment, differences, console)


def evaluation_table(environment: Mapping[str, Any], rows: Sequence[Row]) -> Table:
    """One section per category; its fastest policy is bold."""
    predicted = any(row.predicted_seconds is not None for row in rows)
    table = Table(box=box.SIMPLE_HEAD, title=_title(environment), title_justify="left")
    table.add_column("category", style="cyan", no_wrap=True)
    table.add_column("policy", overflow="fold")
    for name in ["tokens/round", "tokens/s", "speed-up", "median", "p10-p90", "same text"]:
        table.add_column(name, justify="right", no_wrap=True)
    if predicted:
        table.add_column("predicted", justify="right", no_wrap=True)
    best: dict[str, float] = {}
    for row in rows:
        best[row.category] = max(best.get(row.category, 0.0), row.speedup)
    previous = None
    for row in rows:
        if previous not in (None, row.category):
            table.add_section()
        style = "bold" if row.speedup == best[row.category] else None
        cells = _cells(row) + ([_predicted(row)] if predicted else [])
        table.add_row("" if row.category == previous else row.category, *cells, style=style)
        previous = row.category
    return table


def _print_calls(calls: Sequence[CallRow], console: Console) -> None:
    """Whole calls of policies and peers over all prompts, with what they mean."""
    table = Table(box=box.SIMPLE_HEAD, title="beside other engines", title_justify="left")
    table.add_column("who", overflow="fold")
    for name in ["weights", "tokens/s", "p10-p90", "ratio", "95 %", "median", "same text"]:
        table.add_column(name, justify="right", no_wrap=True)
    for call in calls:
        if call.category == ALL:
            table.add_row(
                *(call.who, call.weights, f"{call.tokens_per_second:.1f}"),
                f"{call.p10:.1f}-{call.p90:.1f}",
                f"{call.ratio.value:.2f}x",
                f"{call.ratio.low:.2f}-{call.ratio.high:.2f}",
                f"{call.median_ratio.value:.2f}x",
                f"{call.identical_texts}/{call.prompts}",
            )
    console.print()
    console.print(table)
    console.print(
        f"whole calls: prompt included, tokenisation not. ratio: to {baseline_told(calls)}, totals "
        "over totals; median: of single prompts. same text: as above.",
        style="dim",
        highlight=False,
    )


def print_stats(generation: Generation, target: Target, console: Console) -> None:
    """Every round of a text, and totals.

    Args:
        generation: A finished text.
        target: Turns token ids into words.
        console: Where to print.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title="rounds (times in ms; missed: positions to catch up)",
        title_justify="left",
    )
    counted = ["#", "context", "drafter", "drafted", "accepted", "missed"]
    for name in [*counted, "decide", "catch up", "draft", "verify", "commit"]:
        table.add_column(name, justify="left" if name == "drafter" else "right", no_wrap=True)
    # Words do not help in a narrow window; the figures must stay readable.
    table.add_column("committed text", no_wrap=True, overflow="ellipsis", max_width=30)
    for number, item in enumerate(generation.rounds, start=1):
        record, times = item.record, item.record.times
        phases = [item.decide_seconds, times.catch_up, times.draft, times.verify, times.commit]
        counts = [
            record.context,
            record.drafted_by,
            len(record.drafted),
            record.accepted,
            record.caught_up,
        ]
        text = Text(target.decode(record.committed).replace("\n", "\\n"))
        cells = [number, *counts, *(f"{1000 * seconds:.1f}" for seconds in phases)]
        table.add_row(*map(str, cells), text)
    console.print(table)
    console.print(summary(generation), highlight=False, markup=False)


def summary(generation: Generation) -> str:
    """Totals of a text, one fact per line."""
    rounds = generation.rounds
    drafted = sum(len(item.record.drafted) for item in rounds)
    accepted = sum(item.record.accepted for item in rounds)
    drafters = Counter(item.record.drafted_by for item in rounds)
    phases = {
        "decide": sum(item.decide_seconds for item in rounds),
        "catch up": sum(item.record.times.catch_up for item in rounds),
        "draft": sum(item.record.times.draft for item in rounds),
        "verify": sum(item.record.times.verify for item in rounds),
        "commit": sum(item.record.times.commit for item in rounds),
    }
    total = generation.decode_seconds or 1.0
    kept = f" ({generation.reused} kept from the turn before)" if generation.reused else ""
    lines = [
        f"{len(generation.tokens)} tokens after a prompt of {generation.prompt_tokens}{kept}, "
        f"{len(rounds)} rounds, ended by {generation.finish_reason}",
        f"{generation.acceptance_length:.2f} tokens per round, "
        f"{drafted} drafted, {accepted} accepted",
        f"{generation.tokens_per_second:.1f} tokens/s "
        f"({generation.decode_seconds:.2f} s; the prompt took {generation.prefill_seconds:.2f} s)",
        "drafted by: "
        + (", ".join(f"{who} {count}" for who, count in drafters.most_common()) or "nobody"),
        "time: " + ", ".join(f"{name} {part / total:.1%}" for name, part in phases.items()),
    ]
    return "\n".join(lines)


def _title(environment: Mapping[str, Any]) -> str | None:
    if not environment:
        return None
    return (
        "{target}, {dtype}, threads {threads}; {prompts} prompts, up to {max_new_tokens} tokens, "
        "temperature {temperature:g}, {verification}, seed {seed}"
    ).format(**environment)


def _prompts_told(environment: Mapping[str, Any]) -> list[str]:
    """What was not played, though the prompts have it, and how many turns were."""
    lines = []
    if left_out := environment.get("left_out_prompts"):
        lines.append(f"left out, too long: {len(left_out)} prompts, such as {left_out[0]!r}")
    if further := environment.get("prompts_with_further_turns"):
        count = environment["prompt_count"]
        played = (
            f"{turns} in all" if (turns := environment.get("turns")) else "which were not played"
        )
        lines.append(f"{further} of {count} prompts have further turns, {played}")
    return lines


def _cells(row: Row) -> list[str]:
    return [
        row.policy,
        f"{row.acceptance_length:.2f}",
        f"{row.tokens_per_second:.1f}",
        f"{row.speedup:.2f}x",
        f"{row.speedup_p50:.2f}x",
        "" if row.policy == PLAIN else f"{row.speedup_p10:.2f}-{row.speedup_p90:.2f}",
        f"{row.identical_texts}/{row.prompts}",
    ]


def _predicted(row: Row) -> str:
    """How far the cost model's seconds are from the measured ones."""
    if row.predicted_seconds is None or not row.seconds:
        return ""
    return f"{row.predicted_seconds / row.seconds - 1:+.1%}"


def _print_arms(rows: Sequence[Row], console: Console) -> None:
    routed = [row for row in rows if row.category == "all" and len(row.arm_shares) > 1]
    if not routed:
        return
    console.print("\narms, share of the rounds:", highlight=False)
    for row in routed:
        shares = ", ".join(f"{arm} {share:.0%}" for arm, share in row.arm_shares.items())
        console.print(
            f"  {row.policy}: {shares} (deciding took {row.decision_share:.1%} of the time)",
            highlight=False,
            markup=False,
        )


def _print_differences(
    environment: Mapping[str, Any], differences: Sequence[Difference], console: Console
) -> None:
    if not differences:
        console.print("\nevery text is plain decoding's, token for token")
        return
    why = (
        "rejection verification keeps the distribution, not the text"
        if environment.get("verification") == "rejection"
        else "margin: how far plain decoding's token was ahead of the next one"
    )
    console.print(f"\n{len(differences)} texts differ from plain decoding's ({why}):")
    for item in differences[:MAX_DIFFERENCES]:
        margin = "" if item.margin is None else f", margin {item.margin:.2g}"
        line = f"  {item.policy}: {item.question_id} from token {item.index}{margin}"
        console.print(line, highlight=False, markup=False)
    if len(differences) > MAX_DIFFERENCES:
        console.print(f"  ... and {len(differences) - MAX_DIFFERENCES} more (all in --json)")
