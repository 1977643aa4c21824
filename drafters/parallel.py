"""Drafting at many positions of one text at once.

A proposal depends on the committed prefix alone. So when a text is known, what a drafter would have
proposed at each of its positions can be asked for in wide batches instead of one position at a
time: the trick of training-time tests, with the drafter's own tokens. Traces are collected so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape, PrefixView
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.dflash.batched import dflash_at_each
from draftgym.drafters.dflash.drafter import DFlashDrafter
from draftgym.drafters.eagle3.batched import eagle3_at_each
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.small_lm.batched import small_lm_at_each
from draftgym.drafters.small_lm.drafter import SmallLMDrafter

TOGETHER = 48
"""Positions per batch; the noise of so many is kept (`decoding.verify.noise.NoiseCache`)."""


@dataclass(frozen=True)
class Place:
    """A position to draft at.

    Attributes:
        length: Committed tokens there; the last of them is the anchor.
        room: Most tokens on one path.
    """

    length: int
    room: int


def propose_at_each(
    drafter: Drafter, context: DraftContext, places: Sequence[Place], shapes: Sequence[DraftShape]
) -> list[list[Proposal]]:
    """What `Drafter.propose` would draft at each of some places, in each of some shapes.

    Args:
        drafter: The drafter.
        context: The whole text, with taps of all positions but the last.
        places: Where to draft, by rising length; places without room get empty proposals.
        shapes: What to draft there.

    Returns:
        Per place one proposal per shape. They carry no draft distributions.
    """
    draft = in_batches(drafter, context, any(shape.is_tree for shape in shapes))
    if draft is None:
        return _one_by_one(drafter, context, places, shapes)
    open_places = [place for place in places if place.room > 0]
    drawn: list[list[Proposal]] = []
    for start in range(0, len(open_places), TOGETHER):
        chunk = open_places[start : start + TOGETHER]
        lengths = [place.length for place in chunk]
        cut = [[shape.cut(place.room) for shape in shapes] for place in chunk]
        drawn += draft(lengths, cut)
    made = iter(drawn)
    return [next(made) if p.room > 0 else [Proposal.empty()] * len(shapes) for p in places]


Batched = Callable[[list[int], list[list[DraftShape]]], list[list[Proposal]]]
"""Proposals at some places, from their lengths and what is to be drafted at each."""


def in_batches(drafter: Drafter, context: DraftContext, trees: bool = False) -> Batched | None:
    """How a drafter serves many places in one batch; None where it has no way to.

    Args:
        drafter: The drafter.
        context: The whole text.
        trees: Whether trees are to be drafted, chains aside.
    """
    if isinstance(drafter, Eagle3Drafter):
        return partial(eagle3_at_each, drafter, context)
    if isinstance(drafter, DFlashDrafter):
        return partial(dflash_at_each, drafter, context)
    if isinstance(drafter, SmallLMDrafter) and not trees:
        return partial(small_lm_at_each, drafter, context)
    return None


def _one_by_one(
    drafter: Drafter, context: DraftContext, places: Sequence[Place], shapes: Sequence[DraftShape]
) -> list[list[Proposal]]:
    state = drafter.new_state(len(context.tokens))
    drawn = []
    for place in places:
        view = PrefixView(context, place.length)
        drafter.catch_up(state, view)
        drawn.append(
            [
                drafter.propose(state, view, shape.cut(place.room))
                if place.room > 0
                else Proposal.empty()
                for shape in shapes
            ]
        )
    return drawn
