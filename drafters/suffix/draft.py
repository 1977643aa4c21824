"""Drawing a draft from occurrences: the most frequent continuations, best first.

The probability of a token is its share among those that followed where its parent's path occurred;
that of a path is the product along it. A path is never likelier than its beginning, so the best
nodes form a tree, and the sum of their probabilities is the number of tokens that are expected to
be accepted: the score by which SuffixDecoding (arXiv 2411.04975) chooses between matches.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from draftgym.drafters.suffix.matches import Match


@dataclass(frozen=True)
class Limits:
    """How far a draft may go.

    Attributes:
        depth: Most tokens on a path.
        nodes: Most tokens in all.
        width: Most children of a node; 1 draws the greedy chain.
        factor: Most tokens for every token of the match (the paper's alpha).
        least: Smallest probability of a path.
        never: Tokens that are not copied; a text's end is one of them where there is an end.
    """

    depth: int
    nodes: int
    width: int
    factor: float
    least: float
    never: Collection[int]


@dataclass
class Draft:
    """A tree of tokens, from best to worst.

    Attributes:
        match: Length of the match that it was drawn from.
        tokens: Token ids.
        parents: Index of each one's parent, -1 for the anchor.
        logprobs: Logarithm of each one's share among what followed its parent.
        score: Sum of the paths' probabilities, as it was drawn.
    """

    match: int = 0
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    score: float = 0.0

    def cut(self, length: int) -> Draft:
        """The first tokens of a chain."""
        return Draft(
            self.match, self.tokens[:length], self.parents[:length], self.logprobs[:length]
        )


def best_draft(matches: Iterable[Match], limits: Limits) -> Draft:
    """The draft with the largest score; of equal ones that of the longer match.

    Args:
        matches: By falling length.
        limits: How far it may go.
    """
    best = Draft()
    for match in matches:
        if min(limits.nodes, int(limits.factor * match.length)) <= best.score:
            break  # no path is likelier than 1, and no shorter match may have more of them
        draft = draw(match, limits)
        if draft.score > best.score:
            best = draft
    return best


def draw(match: Match, limits: Limits) -> Draft:
    """The likeliest paths that followed a match; of equally likely ones the newest."""
    draft, order = Draft(match.length), count()
    most = min(limits.nodes, int(limits.factor * match.length))
    # Entries: minus the path's probability, order of coming, token, parent, logprob, depth, where.
    heap: list[tuple[float, int, int, int, float, int, list[int]]] = []

    def add_children(parent: int, path: float, depth: int, at: Sequence[int]) -> None:
        followed = followers(match.text, at, limits.never)
        total = sum(map(len, followed.values()))
        likeliest = sorted(followed.items(), key=lambda one: -len(one[1]))[: limits.width]
        for token, places in likeliest:
            share = len(places) / total
            if path * share < limits.least:
                break
            entry = (token, parent, math.log(share), depth, places)
            heapq.heappush(heap, (-path * share, next(order), *entry))

    add_children(-1, 1.0, 1, match.after)
    while heap and len(draft.tokens) < most:
        path, _, token, parent, logprob, depth, places = heapq.heappop(heap)
        draft.tokens.append(token)
        draft.parents.append(parent)
        draft.logprobs.append(logprob)
        draft.score -= path
        if depth < limits.depth:
            add_children(len(draft.tokens) - 1, -path, depth + 1, places)
    return draft


def followers(
    text: Sequence[int], at: Sequence[int], never: Collection[int]
) -> dict[int, list[int]]:
    """By token that stands at some positions of a text, the positions behind it."""
    found: dict[int, list[int]] = {}
    for position in at:
        if position < len(text) and (token := text[position]) not in never:
            found.setdefault(token, []).append(position + 1)
    return found
