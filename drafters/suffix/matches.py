"""Where the end of a text occurred before.

A suffix tree answers that with a node whose counts tell what followed. Here the occurrences
themselves are kept, and counted when a draft is drawn from them (`draftgym.drafters.suffix.draft`):
an index of a number per token is all that has to follow the text, and a text that is not copied
from costs next to nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

MOST = 256
"""Most occurrences that are counted; of more the newest are, so that no text makes a draft slow."""


@dataclass(frozen=True)
class Match:
    """Occurrences of the newest tokens of a text.

    Attributes:
        length: How many tokens match.
        text: Where they match: the text itself, or a store's.
        after: Positions behind the occurrences, the newest first.
    """

    length: int
    text: Sequence[int]
    after: Sequence[int]


@dataclass
class TextIndex:
    """Where each token of a text stands; the newest has no continuation yet and is left out.

    Attributes:
        length: How many positions are indexed.
        places: Ascending positions of every token.
    """

    length: int = 0
    places: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def extend(self, tokens: Sequence[int]) -> int:
        """Indexes what is new of a text, all of one that has become shorter; returns how much."""
        stop = len(tokens) - 1
        if stop < self.length:
            self.length = 0
            self.places.clear()
        start, self.length = self.length, stop
        for position in range(start, stop):
            self.places[tokens[position]].append(position)
        return stop - start

    def matches(self, tokens: Sequence[int], longest: int, never: Collection[int]) -> list[Match]:
        """The occurrences of the text's last tokens, for each number of them that tells them apart.

        Args:
            tokens: The text, as it is indexed.
            longest: Most tokens to match.
            never: Tokens that are not matched.

        Returns:
            Matches by falling length. Of two with the same occurrences the longer stands for both.
        """
        found: list[Match] = []
        ends = self.places.get(tokens[-1], [])[: -MOST - 1 : -1]
        for length in range(1, min(longest, len(tokens)) + 1):
            token = tokens[-length]
            if token in never:
                break
            kept = [end for end in ends if end >= length - 1 and tokens[end - length + 1] == token]
            if not kept:
                break
            if found and len(kept) == len(ends):
                found.pop()
            found.append(Match(length, tokens, [end + 1 for end in kept]))
            ends = kept
        return found[::-1]
