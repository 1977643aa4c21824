"""What one drafter would have done with recorded texts, under every rule: exact, without decoding.

| rule | texts | rounds |
|---|---|---|
| greedy | at temperature 0 | those of decoding |
| coupled | at a temperature above 0 | those of decoding with the text's seed |
| rejection | the same | expected, given the text (`draftgym.drafters.positions.recorded`) |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.drafters.held_out_texts import HeldOutText, Recordings
from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import Drafter
from draftgym.drafters.positions.recorded import (
    ForcedRule,
    Rounds,
    chances_at_each,
    expected_rounds,
    rounds_at_each,
)

Walk = list[list[int]]
"""Three rows: committed tokens, drafted tokens and draft depth of a text's rounds."""


@dataclass(frozen=True, order=True)
class Condition:
    """Under what a drafter is measured.

    Attributes:
        temperature: Of the texts.
        rule: `greedy`, `coupled` or `rejection`.
        shape: What is drafted, as in an arm: 4 or 4x8.
    """

    temperature: float
    rule: str
    shape: str

    def __str__(self) -> str:
        return f"T={self.temperature:g} {self.rule} {self.shape}"


def conditions(temperatures: Sequence[float], shapes: Sequence[str]) -> list[Condition]:
    """Every rule that goes with each temperature, in every shape."""
    return [
        Condition(temperature, rule, shape)
        for temperature in temperatures
        for rule in (("coupled", "rejection") if temperature else ("greedy",))
        for shape in shapes
    ]


@dataclass
class Measured:
    """One drafter under one condition, a number per text.

    Attributes:
        rounds: Rounds that write the text; under rejection their expectation.
        at_positions: Sum over all its positions of what a round there would commit.
        walks: The rounds themselves, at temperature 0 (for cost models).
    """

    rounds: list[float] = field(default_factory=list)
    at_positions: list[float] = field(default_factory=list)
    walks: list[Walk] = field(default_factory=list)

    def add(self, rounds: float, at_positions: float) -> None:
        """Takes in a text."""
        self.rounds.append(round(rounds, 6))
        self.at_positions.append(round(at_positions, 6))

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def measure_drafter(
    drafter: Drafter, recordings: Recordings, arms: Sequence[Arm], shapes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Measures a drafter on all texts.

    Args:
        drafter: Who drafts.
        recordings: Prepared texts.
        arms: This drafter's arms.
        shapes: How each arm's shape is written.

    Returns:
        By condition, `Measured` as JSON, its numbers in the order of the texts of its temperature.
    """
    found: dict[str, Measured] = {}
    for one in recordings:
        for rule, numbers in _measure_text(drafter, recordings, one, arms):
            for shape, (rounds, at_positions, walk) in zip(shapes, numbers, strict=True):
                condition = str(Condition(one.temperature, rule, shape))
                mine = found.setdefault(condition, Measured())
                mine.add(rounds, at_positions)
                if walk is not None and not one.temperature:
                    mine.walks.append(walk)
    return {condition: mine.to_json() for condition, mine in found.items()}


Numbers = list[tuple[float, float, Walk | None]]
"""Per arm: rounds, committed over all positions, and the rounds where they are certain."""


def _measure_text(
    drafter: Drafter, recordings: Recordings, one: HeldOutText, arms: Sequence[Arm]
) -> Iterator[tuple[str, Numbers]]:
    text = recordings.recorded(one, drafter.tap_layers)
    made = rounds_at_each(drafter, text, [arm.shape for arm in arms])
    yield text.rule.name, [_certain(rounds) for rounds in made]
    if not one.temperature:
        return
    text = replace(text, rule=ForcedRule(one.text.tokens, one.temperature))
    trees = [arm.shape for arm in arms if arm.shape.is_tree]
    drawn = iter(rounds_at_each(drafter, text, trees) if trees else [])
    longest = max((arm.length for arm in arms if not arm.shape.is_tree), default=0)
    chances = np.zeros((0, one.decoded))
    if longest:
        chances = chances_at_each(drafter, text, recordings.logprobs(one), longest)
    numbers: Numbers = []
    for arm in arms:
        if arm.shape.is_tree:
            numbers.append(_certain(next(drawn)))
        else:
            mine = chances[: arm.length]
            numbers.append((expected_rounds(mine), float(one.decoded + mine.sum()), None))
    yield "rejection", numbers


def _certain(rounds: Rounds) -> tuple[float, float, Walk]:
    walked = rounds.walked()
    walk = [walked.committed.tolist(), walked.drafted.tolist(), walked.depth.tolist()]
    return float(len(walked.committed)), float(rounds.committed.sum()), walk
