"""Policies as users write them: `name`, `name:number`, `name@arm,arm` or `name:number@arm,arm`.

random@eagle3:2,ngram:8,plain      entropy:1.5@eagle3:2,dflash:2      ucb-time@eagle3:2,ngram:8
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from draftgym.decoding.arms import Arm, check_arms, parse_arm
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError

CHOOSERS = ("random", "entropy", "ucb", "ucb-time")
"""Policies that choose among arms and can be told which."""


@dataclass(frozen=True)
class ChooserSpec:
    """A policy that chooses among arms, taken apart.

    Attributes:
        text: As it was written, without surrounding blanks.
        name: One of `CHOOSERS`.
        number: What stands behind the colon, or an empty string.
        arms: What stands behind the `@`, or None.
    """

    text: str
    name: str
    number: str
    arms: tuple[Arm, ...] | None

    def read_number(self, meaning: str, example: str) -> float | None:
        """The number; None where there is none.

        Args:
            meaning: What it is, for the error.
            example: How it is written, for the error.

        Raises:
            DraftgymError: Something else stands there.
        """
        try:
            return float(self.number) if self.number else None
        except ValueError:
            raise DraftgymError(
                f"policy {self.text!r} has no number after the colon",
                f"write {meaning}, as in {example}",
            ) from None


def chooser_name(text: str) -> str:
    """The name in front of `:` and `@`."""
    return text.strip().partition("@")[0].partition(":")[0]


def parse_chooser(text: str, drafters: Mapping[str, Drafter]) -> ChooserSpec:
    """Takes the text of a chooser apart.

    Raises:
        DraftgymError: The list of arms is empty, repeats one, or names one that cannot be served.
    """
    text = text.strip()
    head, at, listed = text.partition("@")
    name, _, number = head.partition(":")
    return ChooserSpec(text, name, number, _parse_arms(text, listed, drafters) if at else None)


def _parse_arms(text: str, listed: str, drafters: Mapping[str, Drafter]) -> tuple[Arm, ...]:
    parts = [part.strip() for part in listed.split(",")]
    if not all(parts):
        raise DraftgymError(
            f"policy {text!r} lists an empty arm",
            "write arms with commas between them, as in random@eagle3:2,ngram:8,plain",
        )
    arms = tuple(map(parse_arm, parts))
    check_arms(arms, drafters)
    if len(set(arms)) < len(arms):
        raise DraftgymError(f"policy {text!r} lists an arm twice", "name every arm once")
    return arms
