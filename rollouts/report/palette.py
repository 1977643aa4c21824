"""Colours that colour-blind people can tell apart, the same for an arm wherever it is shown."""

from __future__ import annotations

from collections.abc import Sequence

from draftgym.decoding.arms import PLAIN

NEUTRAL = "#8a8f98"
"""The target itself: plain decoding, and the tokens that nobody drafted."""

OF_DRAFTER = {
    PLAIN: NEUTRAL,
    "eagle3": "#0072b2",
    "dflash": "#e69f00",
    "ngram": "#009e73",
    "small": "#cc79a7",
    "suffix": "#882255",
}
SPARE = ("#d55e00", "#6a4c9c", "#b8a900", "#7a5230")
"""For whoever is no drafter (routers, `random`), in turn. The drafters' colours and the first of
these are Okabe and Ito's, but for suffix's wine (Tol's); their sky blue is left to the shades of
blue."""

LIGHTEST = 0.6
"""How far towards white the last of several arms of one drafter goes."""


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """One colour per name.

    Arms and policies of one drafter (`eagle3:2`, `eagle3:4x8`) are shades of its colour.

    Args:
        names: Drafters, arms or policies.

    Returns:
        Colours as `#rrggbb`.
    """
    families: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        drafter = name.partition(":")[0]
        families.setdefault(drafter if drafter in OF_DRAFTER else name, []).append(name)
    colours, strangers = {}, 0
    for family, members in families.items():
        if family in OF_DRAFTER:
            base = OF_DRAFTER[family]
        else:
            base, strangers = SPARE[strangers % len(SPARE)], strangers + 1
        for index, name in enumerate(members):
            colours[name] = _lighter(base, LIGHTEST * index / len(members))
    return colours


def ink_on(colour: str) -> str:
    """Black or white, whichever can be read better on a colour."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.3 * red + 0.59 * green + 0.11 * blue > 120 else "#ffffff"


def _lighter(colour: str, amount: float) -> str:
    """A colour mixed with white; 0 leaves it, 1 is white."""
    channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(c + (255 - c) * amount):02x}" for c in channels)
