"""Prompt lookup neither matches nor copies the placeholders of images."""

from __future__ import annotations

from types import SimpleNamespace

from draftgym.decoding.drafting import DraftShape
from draftgym.drafters.ngram.drafter import NgramDrafter

IMAGE = 9


def drafted(tokens: list[int], never: frozenset[int] = frozenset({IMAGE})) -> list[int]:
    """What prompt lookup proposes behind some tokens."""
    drafter = NgramDrafter(longest=3, shortest=1, never=never)
    context = SimpleNamespace(token_ids=tokens)
    state = drafter.new_state(len(tokens))
    drafter.catch_up(state, context)
    return drafter.propose(state, context, DraftShape(4)).tokens.tolist()


def test_a_match_through_an_image_is_none() -> None:
    tokens = [1, IMAGE, IMAGE, IMAGE, 2, 3, IMAGE]
    assert drafted(tokens, frozenset()) == [2, 3, IMAGE]
    assert drafted(tokens) == []
    # The newest token alone matches; with the image before it, it would match a longer run.
    assert drafted([5, 4, 7, IMAGE, 5, 8, 6, IMAGE, 5]) == [8, 6]


def test_copies_end_before_an_image() -> None:
    tokens = [1, 2, IMAGE, IMAGE, 3, 1]
    assert drafted(tokens, frozenset()) == [2, IMAGE, IMAGE, 3]
    assert drafted(tokens) == [2]


def test_an_earlier_text_is_copied_where_the_latest_goes_on_with_an_image() -> None:
    assert drafted([1, 2, 3, 4, 1, IMAGE, 5, 1]) == [2, 3, 4, 1]


def test_other_texts_are_drafted_as_ever() -> None:
    tokens = [1, 2, 3, 1, 2, 4, 1, 2]
    assert drafted(tokens) == drafted(tokens, frozenset())
    assert NgramDrafter(never=frozenset()).fingerprint == NgramDrafter().fingerprint
    assert NgramDrafter(never=frozenset({IMAGE})).fingerprint != NgramDrafter().fingerprint
