"""Arms: what a policy chooses from, each a drafter with a draft length."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from decoding.drafting import Drafter
from decoding.errors import DraftgymError

PLAIN = "plain"


@dataclass(frozen=True)
class Arm:
    """One choice of a policy.

    Attributes:
        drafter: Name of the drafter; `plain` drafts nothing.
        length: Most tokens to draft.
    """

    drafter: str
    length: int

    @property
    def drafts(self) -> bool:
        """False for the arm that leaves the round to the target alone."""
        return self.drafter != PLAIN and self.length > 0

    def __str__(self) -> str:
        return f"{self.drafter}:{self.length}" if self.drafts else PLAIN


DEFAULT_LENGTHS = {"eagle3": 3, "dflash": 3, "ngram": 8}


def parse_arm(text: str) -> Arm:
    """Reads `plain`, `eagle3` (default length) or `eagle3:4`.

    Raises:
        DraftgymError: The length is not a positive number.
    """
    name, _, length = text.strip().partition(":")
    if name == PLAIN:
        return Arm(PLAIN, 0)
    if not length:
        return Arm(name, DEFAULT_LENGTHS.get(name, 4))
    if not length.isdecimal() or int(length) < 1:
        raise DraftgymError(
            f"arm {text!r} has draft length {length!r}", "write a positive number, as in eagle3:4"
        )
    return Arm(name, int(length))


def check_arms(arms: Iterable[Arm], drafters: Mapping[str, Drafter]) -> None:
    """Raises `DraftgymError` for an arm that no loaded drafter can serve."""
    for arm in arms:
        if not arm.drafts:
            continue
        drafter = drafters.get(arm.drafter)
        if drafter is None:
            close = difflib.get_close_matches(arm.drafter, drafters, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DraftgymError(
                f"arm {str(arm)!r} names an unknown drafter",
                f"{hint}loaded drafters: {', '.join(drafters) or 'none'}",
            )
        if arm.length > drafter.max_draft_length:
            raise DraftgymError(
                f"arm {str(arm)!r} drafts more than {arm.drafter} can",
                f"use a length of at most {drafter.max_draft_length}",
            )


def default_arms(drafters: Mapping[str, Drafter]) -> tuple[Arm, ...]:
    """One arm per loaded drafter, at its default length."""
    return tuple(
        Arm(name, min(DEFAULT_LENGTHS.get(name, 4), drafter.max_draft_length))
        for name, drafter in drafters.items()
    )
