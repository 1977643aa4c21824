"""Draws the pictures of the README and the pages: `python docs/assets/draw.py`.

The result is read from the table in `docs/results/routers.md`, so the picture says what the page
says. The colours follow the reader's light or dark screen.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parent / "results" / "routers.md"
WIDTH = 920
SHOWN = {  # the table's name of a row: how the picture calls it, and how it is coloured
    "`plain`": ("plain decoding", "grey"),
    "`eagle3:3x6`": ("EAGLE-3, its best tree", "grey"),
    "`ngram:8`": ("prompt lookup", "grey"),
    "`suffix:16`": ("suffix decoding", "grey"),
    "**PPO** (shipped)": ("PPO, a trained router", "teal"),
    "**`suffix:16~0.7>eagle3:3x6~0.06`**, the default": ("copy, else EAGLE-3", "teal"),
}
LINES = "Everything below a room may be imported by it; nothing above."
ROOMS = [
    [
        ("agents", "training: SB3, regression, likelihood"),
        ("serving", "OpenAI's API; devices at the edge"),
    ],
    [("envs", "Gymnasium: router, scheduler, serving; cells, radio, load")],
    [("rollouts", "prompts, decoding, traces, replay and oracle, responses, reports")],
    [("drafters", "EAGLE-3, DFlash, small LM, lookup"), ("policies", "who chooses: one predict")],
    [("decoding", "session, round, decoder; target, verification rules, cost model")],
]
STYLE = """
text { font: 14px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.mono { font: 13.5px ui-monospace, Menlo, Consolas, monospace }
.bold { font-weight: 650 } .big { font-size: 17px } .right { text-anchor: end }
.middle { text-anchor: middle } .muted { fill: #59636e; font-size: 13px }
.card { fill: #ffffff; stroke: #d1d9e0 } .box { fill: #f6f8fa; stroke: #d1d9e0 }
.grey { fill: #afb8c1 } .teal { fill: #0d9488 } .pale { fill: #e6ebf0 } .own { fill: #ffd8b5 }
.yes { fill: #c4ece6 } .no { fill: #ffd7d5 }
.line { stroke: #818b98; stroke-width: 1.6; fill: none }
.dash { stroke-dasharray: 4 4 } .head { fill: #818b98 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .muted { fill: #9198a1 } .head { fill: #9198a1 }
.card { fill: #0d1117; stroke: #3d444d } .box { fill: #151b23; stroke: #3d444d }
.grey { fill: #4d5661 } .teal { fill: #14b8a6 } .pale { fill: #2a323c } .own { fill: #7a4414 }
.yes { fill: #0f5d54 } .no { fill: #7d2724 }
}
"""


def svg(height: int, title: str, body: list[str]) -> str:
    """A picture on a card of its own, legible on any page."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            box(0.5, 0.5, WIDTH - 1, height - 1, "card", 10),
            *body,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words with their baseline at y."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" xml:space="preserve">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: int = 8) -> str:
    """A rounded rectangle."""
    size = f'width="{width:g}" height="{height:g}"'
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" {size} rx="{radius}"/>'


def arrow(points: str, x: float, y: float, turn: int = 0) -> str:
    """A line with a head at (x, y) that points right, turned by so many degrees."""
    where = f"translate({x} {y}) rotate({turn})"
    head = f'<path class="head" d="M0 0 -9 -5 -9 5z" transform="{where}"/>'
    return f'<path class="line" d="{points}"/>{head}'


def draw_round() -> str:
    """A real round: SmolLM2-135M on "Write a Python function that reverses a string."."""
    words = ["Python", "is", "a", "reverse"]
    steps = [
        ("choose", "the policy picks an arm", [("eagle3:4", "pale")]),
        ("draft", "a cheap drafter guesses", [(word, "pale") for word in words]),
        (
            "verify",
            "one pass of the target",
            [(f"{word} ✓", "yes") for word in words[:3]] + [("reverse ✗", "no")],
        ),
        (
            "commit",
            "3 accepted and 1 of its own",
            [(word, "yes") for word in words[:3]] + [("slice", "own")],
        ),
    ]
    body = [
        text(24, 36, "The text so far", "muted"),
        text(126, 36, "This function uses slicing ... The `[::-1]` syntax in", "mono"),
    ]
    for index, (name, what, chips) in enumerate(steps):
        x = 24 + index * 224
        body += [box(x, 56, 200, 150, "box"), text(x + 16, 84, name, "bold big")]
        body.append(text(x + 16, 105, what, "muted"))
        for place, (word, kind) in enumerate(chips):
            left, top = x + 12 + place % 2 * 90, 122 + place // 2 * 38
            body.append(box(left, top, 86, 28, kind, 6))
            body.append(text(left + 43, top + 19, word, "mono middle"))
        if index:
            body.append(arrow(f"M{x - 23} 131H{x - 10}", x - 2, 131))
    body.append(arrow("M796 207V238H124V217", 124, 208, -90))
    body.append(text(460, 258, "next round, until the text ends", "muted middle"))
    return svg(274, "A round of speculative decoding: choose, draft, verify, commit", body)


def speeds() -> dict[str, float]:
    """Speed over plain decoding, from the table of the results page that goes by the clock."""
    table = TABLE.read_text(encoding="utf-8").partition("## By the clock")[2].partition("\n##")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    place = next(index for index, cell in enumerate(rows[0]) if "over `plain`" in cell)
    return {row[0][2:]: float(row[place].strip("*")) for row in rows[1:] if row[0][2:] in SHOWN}


def draw_result() -> str:
    """Bars: how fast whom."""
    found, left, unit = speeds(), 268, 300
    assert set(found) == set(SHOWN)
    body = [
        text(24, 36, "How many times as fast as plain decoding, by the clock", "bold big"),
        text(
            24,
            58,
            "SmolLM2-135M, 30 held-out prompts, T = 0, float32, 2 CPU threads; all texts the same",
            "muted",
        ),
    ]
    for index, (row, (name, kind)) in enumerate(SHOWN.items()):
        top, speed = 76 + index * 32, found[row]
        body.append(text(left - 12, top + 16, name, "right" + (" bold" if kind == "teal" else "")))
        body.append(box(left, top, speed * unit, 22, kind, 4))
        body.append(text(left + speed * unit + 10, top + 16, f"{speed:.2f}", "bold"))
    best = left + found["`ngram:8`"] * unit
    bottom = 76 + len(SHOWN) * 32
    body.append(f'<path class="line dash" d="M{best:g} {76 + 64 + 26}V{bottom - 6}"/>')
    return svg(bottom + 10, "Speed over plain decoding by policy", body)


def draw_rooms() -> str:
    """The house: a room rests on what it may import."""
    body = [
        box(24, 20, 872, 58, "box"),
        text(44, 46, "draftgym", "mono bold"),
        text(190, 46, "the public face and the command line; scripts at the root", "muted"),
        text(190, 66, "benchmarks, examples, tests", "muted"),
    ]
    for row, rooms in enumerate(ROOMS):
        width = (872 - 16 * (len(rooms) - 1)) / len(rooms)
        for place, (name, what) in enumerate(rooms):
            x, y = 24 + place * (width + 16), 92 + row * 62
            body.append(box(x, y, width, 48, "yes" if name == "decoding" else "pale"))
            body.append(text(x + 20, y + 30, name, "mono bold"))
            body.append(text(x + (166 if len(rooms) == 1 else 110), y + 30, what, "muted"))
    bottom = 92 + len(ROOMS) * 62
    body.append(text(WIDTH / 2, bottom + 8, LINES, "muted middle"))
    return svg(bottom + 26, "The rooms of draftgym and what they may import", body)


PICTURES = {"round.svg": draw_round, "result.svg": draw_result, "rooms.svg": draw_rooms}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
