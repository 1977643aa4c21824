"""What texts have in common: held-out prompts stay unseen, and no prompt is there twice.

Texts are compared by their words, case and punctuation aside.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

Words = tuple[str, ...]

LONG = 8
"""So many words in a row are no coincidence: a usual size of n-gram in checks of contamination."""
SHORTEST_QUOTED = 3
"""Held-out prompts of fewer words (`Hello!`) may stand within another prompt."""
ALIKE = 0.75
"""Share of words in common from which two short texts say the same."""
SHINGLE = 3
"""Words of the n-grams by which prompts are compared with each other."""
DUPLICATE = 0.6
"""Share of n-grams in common (Jaccard) from which one of two prompts is a duplicate."""


def words_of(text: str) -> Words:
    """The words of a text, compatible characters and cases made one."""
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def ngrams(words: Words, size: int) -> set[Words]:
    """All n-grams of a text; of a shorter one the whole text."""
    return {words[at : at + size] for at in range(max(1, len(words) - size + 1))}


class HeldOut:
    """Texts that no other may overlap.

    A text overlaps if it has eight words in a row in common with one of them, if it contains the
    whole of a shorter one, or if it is itself shorter and has most of its words in common with one.

    Args:
        texts: The turns of held-out prompts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._ngrams: defaultdict[int, set[Words]] = defaultdict(set)
        self._words: set[frozenset[str]] = set()
        for text in texts:
            words = words_of(text)
            self._words.add(frozenset(words))
            if len(words) >= SHORTEST_QUOTED:
                self._ngrams[min(LONG, len(words))] |= ngrams(words, LONG)

    def overlaps(self, text: str) -> bool:
        """Whether a text has too much in common with a held-out one."""
        words = words_of(text)
        if any(not known.isdisjoint(ngrams(words, size)) for size, known in self._ngrams.items()):
            return True
        own = frozenset(words)
        return len(words) < LONG and any(_jaccard(own, known) >= ALIKE for known in self._words)


class Seen:
    """Texts that were kept so far, to tell what is nearly one of them."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._having: defaultdict[Words, list[int]] = defaultdict(list)

    def add(self, text: str) -> bool:
        """Takes in a text; False, and nothing taken in, where one like it is there already."""
        own = ngrams(words_of(text), SHINGLE)
        common = Counter(one for ngram in own for one in self._having.get(ngram, ()))
        for one, shared in common.items():
            if shared >= DUPLICATE * (len(own) + self._sizes[one] - shared):
                return False
        for ngram in own:
            self._having[ngram].append(len(self._sizes))
        self._sizes.append(len(own))
        return True


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of all their words that both have."""
    return len(one & other) / max(1, len(one | other))
