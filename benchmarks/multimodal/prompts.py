"""Writes prompt files about drawn scenes, for `draftgym respond`.

    $ python -m benchmarks.multimodal.prompts --out runs/scenes

`train.jsonl` and `heldout.jsonl` ask about scenes that the target was not trained on, and no scene
is in both; their pictures lie beside them. Some questions of the shipped training set, about
nothing to be seen, are mixed in to train on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.multimodal.recipe import HELD_OUT
from benchmarks.multimodal.scenes import draw, make_scene
from benchmarks.multimodal.talks import Exchange, talk
from draftgym.decoding.errors import exit_on_user_error
from draftgym.decoding.files import write_text
from draftgym.rollouts.prompts.sets import interleave_categories, load_prompts


@dataclass(frozen=True)
class PromptsArgs:
    """What to write."""

    out: Path
    """Folder of the files and pictures."""
    train: int = 300
    """Scenes to train drafters on."""
    heldout: int = 40
    """Scenes to measure on."""
    questions: int = 2
    """Questions about each scene."""
    text: int = 60
    """Questions without a picture to train on."""
    seed: int = 0
    """Of all of it."""


def write_prompts(args: PromptsArgs) -> None:
    """Writes both files and their pictures."""
    args.out.mkdir(parents=True, exist_ok=True)
    train = [*about_scenes(args, "train", 0, args.train), *_text_alone(args.text)]
    heldout = list(about_scenes(args, "heldout", args.train, args.heldout))
    for name, lines in (("train", train), ("heldout", heldout)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_text(args.out / f"{name}.jsonl", text)


def about_scenes(args: PromptsArgs, name: str, first: int, count: int) -> Iterator[dict[str, Any]]:
    """Lines of a prompt file about some scenes, which are drawn as they are asked for."""
    for number in range(first, first + count):
        scene = make_scene(HELD_OUT, args.seed, number)
        picture = f"{name}-{number}.png"
        draw(scene).save(args.out / picture)
        for place, exchange in enumerate(talk(scene, args.questions)):
            yield {
                "question_id": f"{name}-{number}-{place}",
                "category": exchange.kind,
                "turns": [exchange.question],
                "images": [[picture]],
            }


def answers_to(args: PromptsArgs) -> dict[str, Exchange]:
    """The exchanges of the held-out file, with their exact answers, by question id."""
    numbers = range(args.train, args.train + args.heldout)
    return {
        f"heldout-{number}-{place}": exchange
        for number in numbers
        for place, exchange in enumerate(
            talk(make_scene(HELD_OUT, args.seed, number), args.questions)
        )
    }


def _text_alone(count: int) -> Iterator[dict[str, Any]]:
    for prompt in interleave_categories(load_prompts("train"))[:count]:
        yield {
            "question_id": f"text-{prompt.question_id}",
            "category": "text",
            "turns": [prompt.turns[0]],
        }


def main() -> None:
    """Command line."""
    write_prompts(tyro.cli(PromptsArgs, description=__doc__))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
