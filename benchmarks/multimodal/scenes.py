"""Scenes: a few coloured shapes on a plain or noisy background, drawn from a seed.

Everything that can be said of a scene is known, so captions and answers are exact
(`benchmarks.multimodal.talks`). Shapes stand in a grid of 3 x 3 places, in reading order; no two of
a scene have both colour and kind in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 224
"""Pixels of a picture's side."""
KINDS = ("circle", "square", "triangle", "diamond", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (245, 215, 50),
    "purple": (150, 60, 180),
    "orange": (245, 140, 30),
}
SIZES = {"small": 16, "large": 30}
"""Half the width of a shape, in pixels."""
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
}
PLACES = (
    *("at the top left", "at the top", "at the top right"),
    *("on the left", "in the center", "on the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)
MOST = 4
"""Most shapes of a scene."""
NOISE = 25.0
"""Standard deviation of a noisy background, in steps of 255."""


@dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
        kind: One of `KINDS`.
        color: A key of `COLORS`.
        size: A key of `SIZES`.
        place: Index into `PLACES`.
        shift: Pixels that its middle is off the middle of its place, to the right and down.
    """

    kind: str
    color: str
    size: str
    place: int
    shift: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order on a background.

    Attributes:
        shapes: One to `MOST` of them.
        background: A key of `BACKGROUNDS`.
        noisy: Whether every pixel of the background is off by noise.
        seed: What it was made from; its noise as well.
    """

    shapes: tuple[Shape, ...]
    background: str
    noisy: bool
    seed: tuple[int, ...]


def make_scene(*seed: int) -> Scene:
    """A random scene; the same seed makes the same one."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, MOST + 1))
    looks = rng.choice(len(KINDS) * len(COLORS), count, replace=False)
    places = np.sort(rng.choice(len(PLACES), count, replace=False))
    colors = list(COLORS)
    shapes = tuple(
        Shape(
            KINDS[look % len(KINDS)],
            colors[look // len(KINDS)],
            str(rng.choice(list(SIZES))),
            int(place),
            (int(rng.integers(-5, 6)), int(rng.integers(-5, 6))),
        )
        for look, place in zip(looks.tolist(), places.tolist(), strict=True)
    )
    background = str(rng.choice(list(BACKGROUNDS)))
    return Scene(shapes, background, bool(rng.integers(2)), seed)


def draw(scene: Scene) -> Any:
    """The picture of a scene: an RGB image of Pillow, `SIDE` pixels wide and high."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(_ground(scene))
    pen = ImageDraw.Draw(image)
    third = SIDE // 3
    for shape in scene.shapes:
        right, down = shape.shift
        x = third * (shape.place % 3) + third // 2 + right
        y = third * (shape.place // 3) + third // 2 + down
        _draw_shape(pen, shape, x, y)
    return image


def _ground(scene: Scene) -> NDArray[np.uint8]:
    """The background `[SIDE, SIDE, 3]`."""
    ground = np.zeros((SIDE, SIDE, 3)) + BACKGROUNDS[scene.background]
    if scene.noisy:
        ground += np.random.default_rng((*scene.seed, 1)).normal(0.0, NOISE, ground.shape)
    return ground.clip(0, 255).astype(np.uint8)


def _draw_shape(pen: Any, shape: Shape, x: int, y: int) -> None:
    """Draws one shape around a point."""
    half, fill = SIZES[shape.size], COLORS[shape.color]
    if shape.kind == "circle":
        pen.ellipse((x - half, y - half, x + half, y + half), fill)
    elif shape.kind == "square":
        pen.rectangle((x - half, y - half, x + half, y + half), fill)
    elif shape.kind == "triangle":
        pen.polygon(((x - half, y + half), (x + half, y + half), (x, y - half)), fill)
    elif shape.kind == "diamond":
        pen.polygon(((x - half, y), (x, y - half), (x + half, y), (x, y + half)), fill)
    else:
        bar = max(3, half // 3)
        pen.rectangle((x - half, y - bar, x + half, y + bar), fill)
        pen.rectangle((x - bar, y - half, x + bar, y + half), fill)
