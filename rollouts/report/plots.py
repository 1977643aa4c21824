"""Figures for reports: bars with intervals, stacked shares. Needs matplotlib, loaded when used."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from draftgym.decoding.errors import DraftgymError
from draftgym.rollouts.report.palette import colours_of, ink_on
from draftgym.rollouts.report.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1f24"
"""Text and axes; a page can turn it into its own text colour."""

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "svg.fonttype": "none",  # text stays text: sharp, searchable, in the fonts of the page
    "svg.hashsalt": "draftgym",  # the same figure is the same file
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
WIDTH = {False: 10.5, True: 5.0}
"""Inches, of a wide figure and of a narrow one."""

WIDE_BARS, MAX_VALUES = 24, 60
"""Up to so many bars have room for their value across, and lengthwise."""


def require_matplotlib() -> None:
    """Raises `DraftgymError` where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DraftgymError(
            "plots need matplotlib, which is not installed", "pip install 'draftgym[report]'"
        ) from error


LONGEST = 28
"""Characters of a name that a legend shows."""
LEGEND, LEGEND_NARROW = 118, 56
"""Characters that fit into a line of a legend."""


def grouped_bars(
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Interval]],
    label: str,
    reference: float | None = None,
    colours: Mapping[str, str] | None = None,
    narrow: bool = False,
) -> Figure:
    """One bar per series in every group, with its interval.

    Args:
        title: Stands above the figure.
        groups: Names of the groups.
        series: By name, one value per group; an interval without width is not drawn.
        label: What the bars measure.
        reference: A value to mark with a line.
        colours: By series; None chooses them.
        narrow: Bars lie and groups stand below each other, for a small screen.
    """
    colours, bars = colours or colours_of(list(series)), len(groups) * len(series)
    height = 1.1 + 0.17 * (bars + len(groups)) if narrow else 3.9
    figure, axes = _figure(height, narrow)
    thickness = 0.82 / len(series)
    for index, (name, values) in enumerate(series.items()):
        places = [at + (index - (len(series) - 1) / 2) * thickness for at in range(len(groups))]
        _bars(axes, places, values, thickness * 0.92, colours[name], name, narrow)
        if narrow or bars <= MAX_VALUES:
            turned = not narrow and bars > WIDE_BARS
            _write_values(axes, places, values, ink_on(colours[name]), narrow, turned)
    if narrow:
        axes.set_yticks(range(len(groups)), groups)
        axes.set_xlabel(label)
        axes.set_ylim(len(groups) - 0.5, -0.5)
    else:
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylabel(label)
        axes.set_xlim(-0.55, len(groups) - 0.45)
    axes.tick_params(axis="y" if narrow else "x", length=0)
    axes.grid(axis="x" if narrow else "y", alpha=0.15, color=INK)
    if reference is not None:
        (axes.axvline if narrow else axes.axhline)(reference, color=INK, linewidth=0.9, alpha=0.6)
    _finish(figure, axes, title, narrow)
    return figure


def stacked_shares(
    title: str,
    shares: Mapping[str, Mapping[str, float]],
    label: str,
    colours: Mapping[str, str] | None = None,
    narrow: bool = False,
) -> Figure:
    """One lying bar per row, divided into shares.

    Args:
        title: Stands above the figure.
        shares: By row, the parts by name; the parts of a row sum to one.
        label: What the parts are parts of.
        colours: By part, in the order in which parts follow each other; None chooses them.
        narrow: For a small screen.
    """
    used = list(dict.fromkeys(name for parts in shares.values() for name in parts))
    colours, rows = colours or colours_of(used), list(shares)
    names = [name for name in colours if name in used]
    figure, axes = _figure(1.25 + 0.3 * len(rows), narrow)
    left = [0.0] * len(rows)
    for name in names:
        widths = [shares[row].get(name, 0.0) for row in rows]
        axes.barh(rows, widths, left=left, height=0.72, color=colours[name], label=name)
        for at, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width >= (0.12 if narrow else 0.06):
                middle = start + width / 2
                text = f"{width:.0%}"
                axes.text(middle, at, text, ha="center", va="center", color=ink_on(colours[name]))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _finish(figure, axes, title, narrow)
    return figure


def to_svg(figure: Figure, name: str) -> str:
    """A figure as an `<svg>` element, without what only a file needs.

    Args:
        figure: The figure.
        name: Goes before every id, so that several figures can share a page.
    """
    from matplotlib import rc_context

    sink = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(sink, format="svg")
    text = sink.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)


def _figure(height: float, narrow: bool) -> tuple[Figure, Axes]:
    """Not by pyplot: that would keep figures, and choose a window system."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH[narrow], height), layout="constrained")
        return figure, figure.add_subplot()


def _bars(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[Interval],
    thickness: float,
    colour: str,
    name: str,
    narrow: bool,
) -> None:
    sizes = [one.value for one in values]
    draw = axes.barh if narrow else axes.bar
    draw(places, sizes, thickness, color=colour, label=name)
    for at, one in zip(places, values, strict=True):
        if one.low < one.high:
            ends, line = ([one.low, one.high], [at, at])
            x, y = (ends, line) if narrow else (line, ends)
            axes.plot(x, y, color=INK, linewidth=1.2, solid_capstyle="butt")


def _write_values(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[Interval],
    colour: str,
    narrow: bool,
    turned: bool,
) -> None:
    """At the foot of the bars, out of the way of the intervals."""
    for at, one in zip(places, values, strict=True):
        axes.annotate(
            f"{one.value:.2f}",
            (0, at) if narrow else (at, 0),
            xytext=(4, 0) if narrow else (0, 4),
            textcoords="offset points",
            ha="left" if narrow else "center",
            va="center_baseline" if narrow else "bottom",
            rotation=90 if turned else 0,
            fontsize=7.5,
            color=colour,
        )


def _finish(figure: Figure, axes: Axes, title: str, narrow: bool) -> None:
    """Title above, legend between it and the axes, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    labels = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    widest = max(map(len, labels), default=0) + 6  # the handle and the gap
    columns = max(1, min(6, LEGEND_NARROW // widest if narrow else LEGEND // widest))
    lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, lines - 2))
    axes.set_title(title, loc="left", pad=10 + 15 * lines, fontsize=11, fontweight="bold")
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        frameon=False,
        borderaxespad=0.3,
        borderpad=0,
        handlelength=1.1,
        handleheight=0.9,
        columnspacing=1.4,
    )
