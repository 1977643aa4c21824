"""Tables of a report as HTML: figures with intervals, costs of arms, facts of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from draftgym.rollouts.report.calls import CallRow
from draftgym.rollouts.report.rows import ALL, ArmCost, Evaluation, Row
from draftgym.rollouts.report.stalls import stalls_told
from draftgym.rollouts.report.statistics import Interval, Sureness

FIGURES = (
    ("policy", ""),
    ("tokens / round", "committed tokens per target pass, with its 95 % interval"),
    ("tokens / s", "decoding without the prompt"),
    ("speed-up", "over plain decoding of the same prompts in this run, with its 95 % interval"),
    ("median", "speed-up of a prompt in the middle, with its 95 % interval"),
    ("p10 to p90", "speed-ups of single prompts"),
    ("vs best single arm", "speed over that of the fastest policy with one arm, 95 % interval"),
    ("deciding", "share of the time that observing and choosing took"),
    ("same text", "prompts whose tokens are all plain decoding's"),
)
"""Columns with what they mean."""

LONG_FACT = 32
"""Characters of a fact that fit beside others."""

MARGIN = "how far plain decoding's token was ahead of the next one"


def figures_tables(result: Evaluation, intervals: Mapping[tuple[str, str], Sureness]) -> str:
    """The table over all prompts, and behind a click one per category."""

    def rows_of(category: str) -> list[list[str]]:
        rows = [row for row in result.rows if row.category == category]
        best = max(row.speedup for row in rows)
        return [_figures(row, intervals[row.policy, category], row.speedup == best) for row in rows]

    categories = list(dict.fromkeys(row.category for row in result.rows))
    single = "".join(
        f"<h3>{escape(one)}</h3>{table(FIGURES, rows_of(one))}" for one in categories if one != ALL
    )
    return (
        f"{table(FIGURES, rows_of(ALL))}<details><summary>by category</summary>{single}</details>"
    )


def arm_costs_table(costs: Sequence[ArmCost]) -> str:
    """Measured and predicted milliseconds per round of each arm, and their ratio."""
    columns = (
        ("arm", ""),
        ("rounds", "of all policies"),
        ("measured s", "all of these rounds, decisions left out"),
        ("predicted s", "the same by the cost model"),
        ("measured ms / round", ""),
        ("predicted ms / round", ""),
        ("predicted / measured", "below 1: the rounds took longer than the model says"),
    )
    rows = [
        [
            escape(cost.arm),
            str(cost.rounds),
            f"{cost.measured_seconds:.2f}",
            f"{cost.predicted_seconds:.2f}",
            f"{1000 * cost.measured_seconds / cost.rounds:.1f}",
            f"{1000 * cost.predicted_seconds / cost.rounds:.1f}",
            f"<b>{cost.predicted_seconds / cost.measured_seconds:.2f}</b>",
        ]
        for cost in costs
    ]
    return table(columns, rows)


def calls_table(calls: Sequence[CallRow]) -> str:
    """Whole calls of policies and peers over all prompts."""
    columns = (
        ("who", ""),
        ("weights", "in which numbers they are held"),
        ("tokens / s", "whole calls, prompt included"),
        ("p10 to p90", "tokens / s of single prompts"),
        ("ratio", "totals over totals, with its 95 % interval"),
        ("median", "ratio of a prompt in the middle, with its 95 % interval"),
        ("same text", "prompts whose tokens are all plain decoding's"),
    )
    rows = [
        [
            escape(call.who),
            escape(call.weights),
            f"{call.tokens_per_second:.1f}",
            f"{call.p10:.1f} to {call.p90:.1f}",
            interval_cell(call.ratio, "&times;"),
            interval_cell(call.median_ratio, "&times;"),
            f"{call.identical_texts}/{call.prompts}",
        ]
        for call in calls
        if call.category == ALL
    ]
    return table(columns, rows)


def differences_list(result: Evaluation) -> str:
    """Every text that is not plain decoding's, behind a click."""
    if not result.differences:
        return '<p class="note">Every text is plain decoding\'s, token for token.</p>'
    columns = (("text", ""), ("policy", ""), ("from token", "counted from 0"), ("margin", MARGIN))
    rows = [
        [
            escape(one.question_id),
            escape(one.policy),
            str(one.index),
            "" if one.margin is None else f"{one.margin:.2g}",
        ]
        for one in result.differences
    ]
    return (
        f"<details><summary>{len(rows)} texts differ from plain decoding's</summary>"
        f"{table(columns, rows)}</details>"
    )


def stalls_list(result: Evaluation) -> str:
    """Every text at which the machine stood still; nothing where there is none."""
    return "".join(f'<p class="note">{escape(line)}.</p>' for line in stalls_told(result.stalls))


def facts_list(environment: Mapping[str, Any]) -> str:
    """What the environment says; what is long gets a line of its own."""
    facts = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} ({v})" if v else str(k) for k, v in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        if value is None:
            continue
        kind = ' class="long"' if len(str(value)) > LONG_FACT else ""
        shown = escape(str(value))
        shown = f"<code>{shown}</code>" if key in ("command", "git_revision") else shown
        name = escape(key.replace("_", " "))
        facts.append(f"<div{kind}><dt>{name}</dt><dd>{shown}</dd></div>")
    return f'<dl class="facts">{"".join(facts)}</dl>'


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        columns: Heading of each column and what it means (a tooltip); the first is a row's name.
        rows: Cells as HTML.
    """
    head = "".join(
        f'<th scope="col" title="{escape(tip)}">{name}</th>'
        if tip
        else f'<th scope="col">{name}</th>'
        for name, tip in columns
    )
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def interval_cell(one: Interval, unit: str = "") -> str:
    """A value with its interval in small print, where there is one."""
    ends = f" <small>{one.low:.2f} to {one.high:.2f}</small>" if one.low < one.high else ""
    return f"{one.value:.2f}{unit}{ends}"


def _figures(row: Row, sure: Sureness, fastest: bool) -> list[str]:
    name = escape(row.policy)
    return [
        f"<b>{name}</b>" if fastest else name,
        interval_cell(sure.acceptance_length),
        f"{row.tokens_per_second:.1f}",
        interval_cell(sure.speedup, "&times;"),
        interval_cell(sure.median_speedup, "&times;"),
        f"{row.speedup_p10:.2f} to {row.speedup_p90:.2f}",
        interval_cell(sure.against_best, "&times;"),
        f"{row.decision_share:.1%}",
        f"{row.identical_texts}/{row.prompts}",
    ]
