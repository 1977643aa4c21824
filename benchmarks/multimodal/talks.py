"""What can be asked about a scene, and the exact answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.multimodal.scenes import COLORS, KINDS, PLACES, Scene, Shape

NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True)
class Exchange:
    """A question about a scene with its exact answer.

    Attributes:
        kind: A key of `ASK`.
        question: What a user asks.
        answer: What is true.
    """

    kind: str
    question: str
    answer: str


def talk(scene: Scene, count: int, *seed: int) -> list[Exchange]:
    """Some exchanges about a scene, of different kinds.

    Args:
        scene: The scene.
        count: How many; at most as many as there are kinds.
        *seed: Of the choice.
    """
    rng = np.random.default_rng((*scene.seed, 2, *seed))
    kinds = rng.choice(list(ASK), count, replace=False)
    return [ask(scene, str(kind), rng) for kind in kinds]


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Exchange:
    """One exchange of a kind (a key of `ASK`)."""
    return Exchange(kind, *ASK[kind](scene, rng))


def caption(scene: Scene) -> str:
    """All of a scene in sentences."""
    opening = f"The picture shows {_count(scene)} on {_background(scene)}."
    return " ".join([opening, *(f"{_look(s, 'A')} is {PLACES[s.place]}." for s in scene.shapes)])


def _describe(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    asked = ("Describe the picture.", "What does the picture show?", "Write a caption.")
    return str(rng.choice(asked)), caption(scene)


def _list(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    rows = [f"{i}. {s.color} {s.kind} ({s.size})" for i, s in enumerate(scene.shapes, 1)]
    return "List the shapes.", "\n".join(rows)


def _json(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    rows = [{"shape": s.kind, "color": s.color, "size": s.size} for s in scene.shapes]
    return "Give the shapes as JSON.", json.dumps(rows)


def _how_many(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    are = "is" if len(scene.shapes) == 1 else "are"
    return "How many shapes are there?", f"There {are} {_count(scene)} in the picture."


def _where(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    shape = _any(scene, rng)
    name = f"the {shape.color} {shape.kind}"
    return f"Where is {name}?", f"{name.capitalize()} is {PLACES[shape.place]} of the picture."


def _which(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    shape = _any(scene, rng)
    place = PLACES[shape.place]
    return f"What is {place}?", f"{_look(shape, 'A')} is {place}."


def _is_there(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    kind = str(rng.choice(KINDS)) if rng.integers(2) else _any(scene, rng).kind
    found = [shape for shape in scene.shapes if shape.kind == kind]
    question = f"Is there a {kind}?"
    if not found:
        return question, f"No, there is no {kind} in the picture."
    return question, f"Yes, {_look(found[0], 'a')} is {PLACES[found[0].place]}."


def _colors(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    there = [color for color in COLORS if any(s.color == color for s in scene.shapes)]
    named = there[0] if len(there) == 1 else f"{', '.join(there[:-1])} and {there[-1]}"
    return "Which colors do the shapes have?", f"The shapes are {named}."


def _ground(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return "What is the background like?", f"The shapes are on {_background(scene)}."


ASK: dict[str, Callable[[Scene, np.random.Generator], tuple[str, str]]] = {
    "describe": _describe,
    "list": _list,
    "json": _json,
    "count": _how_many,
    "where": _where,
    "which": _which,
    "is there": _is_there,
    "colors": _colors,
    "background": _ground,
}
"""Question and answer of each kind."""


def _any(scene: Scene, rng: np.random.Generator) -> Shape:
    return scene.shapes[int(rng.integers(len(scene.shapes)))]


def _count(scene: Scene) -> str:
    count = len(scene.shapes)
    return f"{NUMBERS[count]} {'shape' if count == 1 else 'shapes'}"


def _background(scene: Scene) -> str:
    return f"a {'noisy' if scene.noisy else 'plain'} {scene.background} background"


def _look(shape: Shape, article: str) -> str:
    return f"{article} {shape.size} {shape.color} {shape.kind}"
