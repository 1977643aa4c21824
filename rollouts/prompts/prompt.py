"""One question to put to the target, over one turn or several."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One question to put to the target.

    Attributes:
        question_id: Unique within its file; results are filed under it.
        category: What kind of text the answer is (`chat`, `code`, ...).
        turns: What the user says, one string per turn, never empty.
        system: What the target is told before the first turn; None leaves it to its template.
        answers: What the target answered to the turns before the one to answer now.
        images: What the user shows: files per turn, in the order of the images; empty where no turn
            has any.
    """

    question_id: str
    category: str
    turns: tuple[str, ...]
    system: str | None = None
    answers: tuple[str, ...] = ()
    images: tuple[tuple[Path, ...], ...] = ()

    @property
    def text(self) -> str:
        """The turn to answer now: the one behind the answers, at first the first."""
        return self.turns[len(self.answers)]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said so far, the turn to answer last; images come before their turn's text."""
        said: list[dict[str, Any]] = []
        if self.system is not None:
            said.append({"role": "system", "content": self.system})
        for turn, answer in enumerate(self.answers):
            said.append({"role": "user", "content": self._content(turn)})
            said.append({"role": "assistant", "content": answer})
        return [*said, {"role": "user", "content": self._content(len(self.answers))}]

    @property
    def has_next(self) -> bool:
        """Whether a turn follows on this one."""
        return len(self.answers) + 1 < len(self.turns)

    def answered(self, answer: str) -> Prompt | None:
        """The next turn, behind an answer to this one; None where there is none.

        The second turn of question `81` is question `81#2`: results, traces and seeds of single
        turns are filed under it.
        """
        if not self.has_next:
            return None
        answers = (*self.answers, answer)
        first = self.question_id.removesuffix(turn_suffix(len(self.answers)))
        return replace(self, question_id=first + turn_suffix(len(answers)), answers=answers)

    def _content(self, turn: int) -> str | list[dict[str, Any]]:
        """What a turn's message holds: its text, or parts where it shows images."""
        shown = self.images[turn] if self.images else ()
        if not shown:
            return self.turns[turn]
        parts = [{"type": "image", "image": path} for path in shown]
        return [*parts, {"type": "text", "text": self.turns[turn]}]


def turn_suffix(answers: int) -> str:
    """What a question's id gets behind so many answers."""
    return f"#{answers + 1}" if answers else ""


def further_turns(prompts: Iterable[Prompt]) -> int:
    """Prompts with more turns than the first."""
    return sum(len(prompt.turns) > 1 for prompt in prompts)


def note_first_turns(prompts: Sequence[Prompt]) -> None:
    """Says on standard error how many prompts have more turns than the one that is played."""
    if longer := further_turns(prompts):
        told = f"{longer} of {len(prompts)} prompts have further turns, which are not played"
        print(f"note: {told}", file=sys.stderr)
