"""Suffix decoding drafts what a count over the whole text, made anew, says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.drafters.suffix.drafter import SuffixDrafter
from draftgym.drafters.suffix.matches import MOST, TextIndex

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=40)
FACTORS = st.sampled_from([1.0, 1.5, 4.0])
LEAST = 0.1
LONGEST, CHAIN = 5, 6
Path = tuple[int, ...]


def context(tokens: Sequence[int]) -> Any:
    return SimpleNamespace(token_ids=list(tokens))


class Told(NamedTuple):
    """What a proposal says of itself."""

    length: int
    tokens: int
    score: float


def asked(drafter: Any, tokens: Sequence[int], shape: DraftShape) -> tuple[Proposal, Told]:
    """What a drafter proposes behind some tokens, and what it tells of that."""
    state, here = drafter.new_state(len(tokens)), context(tokens)
    drafter.catch_up(state, here)
    proposal = drafter.propose(state, here, shape)
    score = sum(map(math.exp, proposal.path_scores()))
    return proposal, Told(proposal.match, len(proposal), score)


def suffix(factor: float = 2.0, **settings: Any) -> SuffixDrafter:
    return SuffixDrafter(LONGEST, factor, LEAST, CHAIN, **settings)


def following(text: Sequence[int], pattern: Sequence[int]) -> list[int]:
    """The tokens behind every occurrence of a pattern, the newest first."""
    size = len(pattern)
    starts = reversed(range(len(text) - size))
    return [text[at + size] for at in starts if list(text[at : at + size]) == list(pattern)]


def share(text: Sequence[int], pattern: Sequence[int], token: int) -> float:
    found = following(text, pattern)
    return found.count(token) / len(found)


def greedy_chain(text: Sequence[int], matched: int, factor: float) -> list[tuple[int, float]]:
    """The most frequent continuation, with the probability of each of its beginnings."""
    pattern, path, probability = list(text[len(text) - matched :]), list[tuple[int, float]](), 1.0
    while len(path) < min(CHAIN, int(factor * matched)) and (found := following(text, pattern)):
        token = max(dict.fromkeys(found), key=found.count)  # of equally frequent ones the newest
        probability *= found.count(token) / len(found)
        if probability < LEAST:
            break
        path.append((token, probability))
        pattern.append(token)
    return path


def best_paths(text: Sequence[int], matched: int, factor: float, shape: DraftShape) -> list[float]:
    """The probabilities of the likeliest paths, from best to worst."""
    pattern, found = list(text[len(text) - matched :]), list[float]()
    level: dict[Path, float] = {(): 1.0}
    for _ in range(shape.depth):
        level = {
            (*path, token): probability * share(text, [*pattern, *path], token)
            for path, probability in level.items()
            for token in set(following(text, [*pattern, *path]))
        }
        found += level.values()
    likely = sorted((one for one in found if one > LEAST - 1e-9), reverse=True)
    return likely[: min(shape.budget, int(factor * matched))]


def path_probabilities(proposal: Proposal) -> dict[Path, float]:
    """Every node's path, with its probability by the proposal's own log-probabilities."""
    paths: list[tuple[Path, float]] = []
    parents, logprobs = proposal.parents.tolist(), proposal.logprobs.tolist()
    for token, parent, logprob in zip(proposal.token_ids, parents, logprobs, strict=True):
        above, score = paths[parent] if parent >= 0 else ((), 0.0)
        paths.append(((*above, token), score + logprob))
    assert len(dict(paths)) == len(paths), "no siblings are alike"
    return {path: math.exp(score) for path, score in paths}


@given(TEXTS, FACTORS)
def test_suffix_chain_is_the_best_scored_of_all_matches(text: list[int], factor: float) -> None:
    chains = [greedy_chain(text, n, factor) for n in range(1, min(LONGEST, len(text)) + 1)]
    scores = [sum(probability for _, probability in chain) for chain in chains]
    best = len(scores) - 1 - scores[::-1].index(max(scores))  # of equal ones the longest match
    proposal, facts = asked(suffix(factor), text, DraftShape(CHAIN))
    assert proposal.is_chain and proposal.draft_probs is None
    assert proposal.token_ids == [token for token, _ in chains[best]]
    expected = pytest.approx([probability for _, probability in chains[best]])
    assert list(path_probabilities(proposal).values()) == expected
    assert facts.score == pytest.approx(scores[best])
    assert (greedy_chain(text, facts.length, factor) if facts.length else []) == chains[best]


@given(TEXTS, FACTORS, st.integers(1, 4), st.integers(0, 8))
def test_suffix_tree_has_the_likeliest_paths_of_the_best_match(
    text: list[int], factor: float, depth: int, more: int
) -> None:
    shape = DraftShape(depth, depth + more)
    lengths = range(1, min(LONGEST, len(text)) + 1)
    wanted = {matched: best_paths(text, matched, factor, shape) for matched in lengths}
    proposal, facts = asked(suffix(factor), text, shape)
    found = path_probabilities(proposal)
    assert facts.tokens == len(proposal) <= shape.budget
    assert facts.score == pytest.approx(max(map(sum, wanted.values())))
    assert [*found.values()] == pytest.approx(wanted.get(facts.length, []))
    assert all(len(path) <= depth for path in found)
    for path, probability in found.items():
        pattern = [*text[len(text) - facts.length :], *path[:-1]]
        above = found[path[:-1]] if path[:-1] else 1.0
        assert probability == pytest.approx(above * share(text, pattern, path[-1]))


@given(TEXTS, FACTORS, st.integers(1, CHAIN))
def test_suffix_shorter_chain_is_the_beginning_of_a_longer_one(
    text: list[int], factor: float, length: int
) -> None:
    longest, _ = asked(suffix(factor), text, DraftShape(CHAIN))
    short, facts = asked(suffix(factor), text, DraftShape(length))
    assert short.token_ids == longest.token_ids[:length]
    assert short.logprobs.tolist() == longest.logprobs.tolist()[:length]
    scores = accumulate(short.logprobs.double().tolist())
    assert facts.score == pytest.approx(sum(map(math.exp, scores)), rel=1e-5)


@given(TEXTS, st.data())
def test_suffix_proposal_depends_on_the_prefix_alone(text: list[int], data: st.DataObject) -> None:
    """Whatever a state has seen before: parts of the text, other texts, longer ones."""
    drafter, shape = suffix(), DraftShape(4, 12)
    fresh, _ = asked(drafter, text, shape)
    state = drafter.new_state(60)
    for stop in sorted(data.draw(st.sets(st.integers(1, len(text))))):
        drafter.catch_up(state, context(text[:stop]))
        drafter.propose(state, context(text[:stop]), DraftShape(3))
    longer = [*text, *data.draw(TEXTS)]
    drafter.catch_up(state, context(longer))
    taken = drafter.take_over(state, len(text), 60)
    for used in (state, taken):
        drafter.catch_up(used, context(text))
        again = drafter.propose(used, context(text), shape)
        assert again.token_ids == fresh.token_ids
        assert again.parents.tolist() == fresh.parents.tolist()
        assert again.logprobs.tolist() == fresh.logprobs.tolist()


def test_suffix_long_match_is_not_outvoted_by_short_ones() -> None:
    #       the long match says 9, the newest and most frequent occurrences of 3 alone say 7
    text = [1, 2, 3, 9, 9, 8, 3, 7, 8, 3, 7, 8, 3, 7, 1, 2, 3]
    assert asked(suffix(), text, DraftShape(2))[0].token_ids == [9, 9]
    assert asked(NgramDrafter(shortest=1), text, DraftShape(2))[1] == Told(3, 2, 2.0)


def test_suffix_placeholders_of_images_are_neither_matched_nor_copied() -> None:
    image = 9
    blind = suffix(never=frozenset({image}))
    copied = [1, 2, image, image, 3, 1]
    assert asked(suffix(), copied, DraftShape(4))[0].token_ids == [2, image]
    assert asked(blind, copied, DraftShape(4))[0].token_ids == [2]
    matched = [1, image, image, image, 2, 3, image]
    assert asked(suffix(), matched, DraftShape(1))[0].token_ids == [image]
    assert asked(blind, matched, DraftShape(4))[1] == Told(0, 0, 0.0)
    assert asked(blind, [4, image, 1, 2, image, 1], DraftShape(1, 4))[1].length == 1
    assert blind.fingerprint != suffix().fingerprint == suffix(never=frozenset()).fingerprint


def test_suffix_counts_the_newest_of_very_many_occurrences() -> None:
    text = [5, 6] * MOST + [5, 7] * MOST + [5]
    index = TextIndex()
    assert index.extend(text) == len(text) - 1
    shortest = index.matches(text, 1, ())[0]
    assert len(shortest.after) == MOST and {text[at] for at in shortest.after} == {7}
