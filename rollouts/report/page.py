"""An evaluation as one self-contained page: figures, tables, and texts token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from draftgym.decoding.arms import PLAIN
from draftgym.decoding.files import write_json, write_text
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import machine_of
from draftgym.rollouts.report.as_json import report_json
from draftgym.rollouts.report.calls import baseline_told, make_calls
from draftgym.rollouts.report.html_tables import (
    arm_costs_table,
    calls_table,
    differences_list,
    facts_list,
    figures_tables,
    stalls_list,
)
from draftgym.rollouts.report.palette import colours_of
from draftgym.rollouts.report.plots import INK, grouped_bars, stacked_shares, to_svg
from draftgym.rollouts.report.rows import ALL, Evaluation
from draftgym.rollouts.report.statistics import (
    Interval,
    Sureness,
    best_single_arm,
    make_intervals,
)
from draftgym.rollouts.report.texts import drafter_classes, text_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent

Plots = Mapping[str, tuple[str, str]]
"""By name, a figure for wide screens and the same one for narrow screens, as SVG."""


def write_report(folder: Path, result: Evaluation, target: Target) -> Path:
    """Writes `index.html`, its figures as `.svg` files, and `figures.json`.

    Args:
        folder: Where to; made if it does not exist.
        result: A finished evaluation.
        target: Decodes its tokens.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    intervals = make_intervals(result)
    plots = make_plots(result, intervals)
    for name, (wide, _) in plots.items():
        write_text(folder / f"{name}.svg", wide)
    body = report_json(result)
    write_json(folder / "figures.json", body)
    page = folder / "index.html"
    write_text(page, make_page(result, target, intervals, plots))
    return page


def make_plots(result: Evaluation, intervals: Mapping[tuple[str, str], Sureness]) -> Plots:
    """The figures of an evaluation by name: `speed`, `acceptance`, `arms`, `arms-by-category`."""
    categories, policies = _categories(result), list(result.choices)
    rows = {(row.policy, row.category): row for row in result.rows}
    drafting = [policy for policy in policies if policy != PLAIN]
    arms = [arm for arms in result.choices.values() for arm in arms]
    colours = colours_of([*policies, *sorted(arms)])  # the same ones in all figures

    def bars(name: str, title: str, label: str, figure: str) -> tuple[str, str]:
        series = {
            policy: [getattr(intervals[policy, one], figure) for one in categories]
            for policy in drafting or policies
        }
        return draw_both(
            name, lambda n: grouped_bars(title, categories, series, label, 1.0, colours, narrow=n)
        )

    def shares(name: str, title: str, parts: dict[str, dict[str, float]]) -> tuple[str, str]:
        label = "share of the rounds"
        return draw_both(name, lambda n: stacked_shares(title, parts, label, colours, narrow=n))

    plots = {
        "speed": bars("speed", "Speed-up over plain decoding", "times plain decoding", "speedup"),
        "acceptance": bars(
            "acceptance", "Acceptance length", "tokens per round", "acceptance_length"
        ),
        "arms": shares(
            "arms",
            "Arms of every policy",
            {policy: rows[policy, ALL].arm_shares for policy in policies},
        ),
    }
    if routed := [p for p in policies if len(result.choices[p]) > 1]:
        parts = {f"{p}, {one}": rows[p, one].arm_shares for p in routed for one in categories}
        plots["arms-by-category"] = shares("arms-by-category", "Arms by category", parts)
    return plots


def make_page(
    result: Evaluation,
    target: Target,
    intervals: Mapping[tuple[str, str], Sureness],
    plots: Plots,
) -> str:
    """The whole page; it loads nothing."""
    name = str(result.environment.get("target", target.name))
    sections = [
        _header(name, result, intervals),
        section("What was measured", facts_list(result.environment)),
        section("Speed", figure_element(plots["speed"]), SPEED_NOTE),
        section("Acceptance", figure_element(plots["acceptance"]), ACCEPTANCE_NOTE),
        section(
            "Figures",
            figures_tables(result, intervals),
            BEST_NOTE.format(escape(best_single_arm(result))),
            stalls_list(result),
            differences_list(result),
        ),
        section("Arms", *(figure_element(plots[one]) for one in plots if one.startswith("arms"))),
    ]
    if calls := make_calls(result):
        note = CALLS_NOTE.format(escape(baseline_told(calls)))
        sections.append(section("Beside other engines", calls_table(calls), note))
    if result.arm_costs:
        sections.append(section("Cost model", arm_costs_table(result.arm_costs), COST_NOTE))
    sections.append(section("Texts", TEXTS_NOTE, text_section(result, target)))
    parts = {
        file: (HERE / file).read_text(encoding="utf-8") for file in ("report.css", "report.js")
    }
    return PAGE.format(
        title=escape(f"{name}: {len(result.choices)} policies compared"),
        style=parts["report.css"] + _drafter_colours(result),
        body="\n".join(sections),
        script=parts["report.js"],
    )


def _header(name: str, result: Evaluation, intervals: Mapping[tuple[str, str], Sureness]) -> str:
    rows = [row for row in result.rows if row.category == ALL]
    drafting = [row for row in rows if row.policy != PLAIN] or rows
    fastest = max(drafting, key=lambda row: row.speedup)
    longest = max(drafting, key=lambda row: row.acceptance_length)
    same, texts = (
        sum(n) for n in zip(*((r.identical_texts, r.prompts) for r in rows), strict=True)
    )
    speed = intervals[fastest.policy, ALL].speedup
    plain = next(row for row in rows if row.policy == PLAIN)
    tiles = [
        ("fastest", f"{speed.value:.2f}&times;", f"{fastest.policy}, {_ends(speed)}"),
        ("plain decoding", f"{plain.tokens_per_second:.1f}", "tokens/s, the reference"),
        (
            "longest acceptance",
            f"{longest.acceptance_length:.2f}",
            f"tokens/round, {longest.policy}",
        ),
        ("same text", f"{same}/{texts}", "token for token that of plain decoding"),
    ]
    shown = "".join(
        f"<li><span>{label}</span><strong>{value}</strong><small>{escape(about)}</small></li>"
        for label, value, about in tiles
    )
    categories = [one for one in _categories(result) if one != ALL]
    facts = [
        f"{len(rows)} policies",
        f"{rows[0].prompts} prompts ({', '.join(categories)})",
        *(str(result.environment[key]) for key in ("dtype",) if key in result.environment),
        *([machine_of(result.environment)] if "cpu" in result.environment else []),
    ]
    return (
        f"<header><h1>Speculative decoding of {escape(name)}</h1>"
        f'<p>{escape(" · ".join(facts))}</p><ul class="tiles">{shown}</ul></header>'
    )


def _ends(one: Interval) -> str:
    return f"95 %: {one.low:.2f} to {one.high:.2f}" if one.low < one.high else "a single prompt"


def section(heading: str, *parts: str) -> str:
    """A part of a page."""
    return f"<section><h2>{heading}</h2>{''.join(parts)}</section>"


def figure_element(plot: tuple[str, str]) -> str:
    """A figure for wide and for narrow screens, in the page's own text colour."""
    wide, narrow = (svg.replace(INK, "currentColor") for svg in plot)
    return f'<figure><div class="wide">{wide}</div><div class="narrow">{narrow}</div></figure>'


def _drafter_colours(result: Evaluation) -> str:
    """The style of every drafter's class: its colour in full, and a light tint of it."""
    classes = drafter_classes(text.generation for text in result.texts)
    colours = colours_of(list(classes))
    return "".join(
        f".{css} {{ --drafter: {colours[name]}; --tint: {colours[name]}38; }}\n"
        for name, css in classes.items()
    )


def draw_both(name: str, draw: Callable[[bool], Figure]) -> tuple[str, str]:
    """The SVG of a figure for wide screens and for narrow ones.

    Args:
        name: Makes ids in the page unique.
        draw: Draws it, told whether narrow.
    """
    return to_svg(draw(False), name), to_svg(draw(True), f"{name}-narrow")


def _categories(result: Evaluation) -> list[str]:
    return list(dict.fromkeys(row.category for row in result.rows))


SPEED_NOTE = """<p class="note">Total tokens over total seconds, against plain decoding of the same
prompts in the same run; prefill left out. Lines are 95 % intervals by a paired bootstrap over
prompts: how much the figure depends on which prompts were picked. A single prompt has none.</p>"""

ACCEPTANCE_NOTE = """<p class="note">Tokens that a round commits, the target's own included; plain
decoding commits 1. Intervals as above.</p>"""

BEST_NOTE = """<p class="note">The best single arm is the fastest policy over all prompts of those
that have but one arm to choose, here <b>{}</b>; it was picked on these same prompts.</p>"""

CALLS_NOTE = """<p class="note">Whole calls of all, prompt included, tokenisation not; ratios with
their 95 % intervals are to {}. Same text: that of plain decoding, token for token.</p>"""

COST_NOTE = """<p class="note">Rounds of all policies by arm. The cost model is what environments
reward with; it was measured before, piece by piece, and leaves out commit and sampling.</p>"""

TEXTS_NOTE = """<p class="note">Every token in the colour of the drafter that proposed it; the
target's own tokens have none. A thin line begins each round. Point at a round, or tap it, to see
its arm, what was drafted and accepted, and how long it took.</p>"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""
