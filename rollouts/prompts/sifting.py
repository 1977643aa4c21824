"""Which written texts make good prompts, and why the others do not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from draftgym.rollouts.prompts.kinds import lacks_its_text
from draftgym.rollouts.prompts.overlap import HeldOut, Seen, words_of

Fault = Literal[
    "not ended",
    "no text",
    "too short",
    "too long",
    "repetitive",
    "an answer",
    "placeholders",
    "lacks its text",
    "not as asked",
    "held out",
    "duplicate",
]

LETTERS = 0.45
"""Share of letters and digits among the characters that a text has at least; formulas have few."""
SPELLED = 2
"""Words with letters that a text has at least."""
NEW_TRIGRAMS = 0.7
"""Share of a text's trigrams of words that occur for the first time, at least."""
FEWEST_TRIGRAMS = 10
"""In shorter texts a repetition may well be meant."""
SAME_LINE = 3
"""A line that stands so often in a text is repeated by accident."""

_ANSWER = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|as an ai|i'm sorry|great question|dear user|"
    r"the user (?:asks|gives|wants|will|needs)|you're welcome|i apologi[sz]e|i'd be happy to|"
    r"i'm here to|the answer is|"
    r"thank you for (?:your|reaching|asking)|"
    r"here(?:'s| is| are) (?:an?|the|your|my) (?:\w+ ){0,3}"
    r"(?:answers?|questions?|example|prompt|response|list|solution|code))\b|"
    r"\bhow (?:can|may) i (?:help|assist) you",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"[\[<](?:your|insert|recipient's) [^\]>]*[\]>]"
    r"|(?-i:\[(?:Name|City|Company|Date|Address|Link|Topic|[A-Z][A-Z ]{2,})\])",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\ufffd|<\||\|>|[\x00-\x08\x0b\x0c\x0e-\x1f]")


@dataclass(frozen=True)
class Limits:
    """How long a prompt may be.

    Attributes:
        fewest: Words at least.
        most: Words at most.
    """

    fewest: int = 4
    most: int = 320


@dataclass
class Sieve:
    """Takes texts one after the other and keeps those that make good prompts, each once.

    Attributes:
        held_out: What no prompt may overlap.
        limits: How long prompts may be.
        left_out: How many texts were left out for which reason.
    """

    held_out: HeldOut
    limits: Limits = Limits()
    left_out: Counter[Fault] = field(default_factory=Counter)
    _seen: Seen = field(default_factory=Seen)

    def keeps(self, text: str | None, ended: bool) -> bool:
        """Whether a text is kept; else its fault is counted.

        Args:
            text: What would be the prompt; None where it is not what was asked for.
            ended: Whether its writer came to an end.
        """
        fault = fault_of(text, ended, self.limits)
        if fault is None and text is not None:
            if self.held_out.overlaps(text):
                fault = "held out"
            elif not self._seen.add(text):
                fault = "duplicate"
        if fault is not None:
            self.left_out[fault] += 1
        return fault is None


def fault_of(text: str | None, ended: bool, limits: Limits) -> Fault | None:
    """What is wrong with a text taken by itself; None where it can be a prompt.

    Args:
        text: As `Sieve.keeps`.
        ended: As `Sieve.keeps`.
        limits: How long it may be.
    """
    if not ended:
        return "not ended"
    if text is None:
        return "not as asked"
    words = len(text.split())
    checks: Iterable[tuple[bool, Fault]] = (
        (words < limits.fewest, "too short"),
        (words > limits.most, "too long"),
        (not _is_text(text), "no text"),
        (is_repetitive(text), "repetitive"),
        (bool(_ANSWER.search(text)), "an answer"),
        (bool(_PLACEHOLDER.search(text)), "placeholders"),
        (lacks_its_text(text), "lacks its text"),
    )
    return next((fault for wrong, fault in checks if wrong), None)


def is_repetitive(text: str) -> bool:
    """Whether words or lines come again and again."""
    words = words_of(text)
    trigrams = [words[at : at + 3] for at in range(len(words) - 2)]
    new = len(set(trigrams)) / max(1, len(trigrams))
    if len(trigrams) >= FEWEST_TRIGRAMS and new < NEW_TRIGRAMS:
        return True
    lines = Counter(line.strip() for line in text.splitlines() if len(line.split()) >= 3)
    return max(lines.values(), default=0) >= SAME_LINE


def _is_text(text: str) -> bool:
    """Whether it is made of letters and digits for the most part, without remains of markup."""
    shown = [one for one in text if not one.isspace()]
    letters = sum(one.isalnum() for one in shown)
    spelled = sum(any(one.isalpha() for one in word) for word in text.split())
    return not _MARKUP.search(text) and letters >= LETTERS * len(shown) and spelled >= SPELLED
