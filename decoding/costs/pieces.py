"""Which pieces of a round are timed, and the cost model that their seconds make.

A piece is a kind, its owner (the context that a pass has behind it, or a drafter) and where on its
curves it lies. Each curve has coarse points, without which it would be made up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import cycle, product
from statistics import median
from typing import Any, NamedTuple

import torch

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.decoding.costs.timed_rounds import Round, behind, catching_up, drafting, verifying
from draftgym.decoding.drafting import MAX_TREE_NODES, Drafter, DraftShape
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule

ROWS = (1, 2, 3, 4, 5, 9, 17, 33, MAX_TREE_NODES + 1)
"""Packed products begin at 4 rows, which may cost less than 3 (`Products`)."""
COARSE_ROWS = (1, 5, 17, MAX_TREE_NODES + 1)
ROOM = max(ROWS) + 1
CONTEXTS = (64, 256, 640)
BACKLOGS = (1, 8, 64, 256, 600)
LENGTHS = (1, 2, 4, 8, 16)
TREE_NODES = (4, 5, 9, 16, MAX_TREE_NODES)
"""A step of a tree runs the square root of its budget, rounded up: costs jump behind 4 and 9."""

VERIFY, DRAFT, TREE, CATCH_UP = "verify", "draft", "tree", "catch up"


class Piece(NamedTuple):
    """What is timed.

    Attributes:
        kind: `VERIFY`, `DRAFT`, `TREE` or `CATCH_UP`.
        drafter: Whose; empty for passes of the target.
        context: Positions in the target's cache.
        at: Rows; a draft length; the depth and nodes of a tree; a backlog.
    """

    kind: str
    drafter: str
    context: int
    at: tuple[int, ...]

    @property
    def group(self) -> tuple[str, str]:
        """What it is measured with."""
        return self.kind, self.drafter

    @property
    def text(self) -> str:
        """Its name in the file of its owner."""
        return " ".join(map(str, (self.kind, self.context, *self.at)))


Seconds = Mapping[Piece, Sequence[float]]
"""Timings of pieces."""


class Asked(NamedTuple):
    """How far costs of a drafter are asked for.

    Attributes:
        length: Longest chain.
        depth: Deepest tree; 0 where none is.
        nodes: Largest tree.
    """

    length: int
    depth: int = 0
    nodes: int = 0


class Pieces:
    """What a cost model is made of.

    Args:
        target: The target.
        drafters: Drafters by name.
        asked: Whose costs are measured, and how far.
        contexts: Context lengths for the target's passes, shortened to what fits.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[str, Drafter],
        asked: Mapping[str, Asked],
        contexts: Sequence[int] = CONTEXTS,
        budget: int = 0,
    ) -> None:
        self.target, self.asked, self.budget = target, asked, budget
        self.drafters = {name: drafters[name] for name in asked}
        self.contexts = fitting_contexts(target, self.drafters, contexts)
        # Drafting is measured at one context, whatever the longest is that passes are asked for.
        self.drafting_at = max(c for c in self.contexts if c <= max(CONTEXTS[-1], self.contexts[0]))
        self.all = list(self._list())
        self.coarse = {piece for group in self._groups() for piece in _ends(group)}

    def _list(self) -> Iterator[Piece]:
        budgets = [max(one.length, one.nodes) for one in self.asked.values()]
        asked = 1 + max(self.budget, *budgets, 0)
        rows = _up_to(ROWS, asked, max(asked, ROWS[-1]))
        for context, n in product(self.contexts, rows):
            if n <= self.contexts[-1]:
                yield Piece(VERIFY, "", context, (n,))
        for name in self.asked:
            lengths, depths, budgets = self._axes(name)
            for kind, points in (
                (DRAFT, [(n,) for n in lengths]),
                (TREE, product(depths, budgets)),
                (CATCH_UP, [(n,) for n in BACKLOGS if n < self.drafting_at - 4]),
            ):
                yield from (Piece(kind, name, self.drafting_at, at) for at in points)

    def _axes(self, name: str) -> tuple[list[int], list[int], list[int]]:
        """Measured lengths of a drafter's chains, and depths and budgets of its trees."""
        drafter, asked = self.drafters[name], self.asked[name]
        longest, most = drafter.max_draft_length, drafter.max_tree_nodes
        return (
            _up_to(LENGTHS, asked.length, longest),
            _up_to(LENGTHS, asked.depth, longest) if asked.nodes else [],
            _up_to(TREE_NODES, asked.nodes, most) if asked.nodes else [],
        )

    def _groups(self) -> list[list[Piece]]:
        groups = {piece.group for piece in self.all}
        return [[piece for piece in self.all if piece.group == group] for group in groups]

    def missing(self, known: Collection[Piece]) -> list[Piece]:
        """Pieces to time: all that are not known of groups that lack a coarse one."""
        lacking = {piece.group for piece in self.coarse if piece not in known}
        return [piece for piece in self.all if piece.group in lacking and piece not in known]

    def rounds(self) -> dict[Piece, Callable[[], Round]]:
        """What makes the round of each piece; sessions and states are made when first needed."""
        session = cache(partial(random_session, self.target, self.drafters))
        state = cache(lambda name, c, n: behind(session(c), self.drafters[name], n))
        turns = {context: cycle(self.drafters) for context in self.contexts}

        def play(piece: Piece) -> Round:
            kind, name, context, at = piece
            if kind == VERIFY and at == (1,):  # one row is plain decoding's
                return verifying(session(context), 1)
            if kind == VERIFY:
                who = next(turns[context])
                ready = state(who, context, 0)
                return verifying(session(context), at[0], self.drafters[who], ready)
            drafter = self.drafters[name]
            if kind == CATCH_UP:
                (backlog,) = at
                return catching_up(
                    session(context), drafter, backlog, state(name, context, backlog)
                )
            shape = DraftShape(at[0], at[1] if len(at) > 1 else None)
            return drafting(session(context), drafter, shape, state(name, context, 1))

        return {piece: partial(play, piece) for piece in self.all}

    def model(self, seconds: Seconds, host: Mapping[str, Any]) -> CostModel:
        """The cost model of timings.

        Args:
            seconds: Timings of all coarse pieces, and of others as far as there are.
            host: What the model says of its host.
        """
        medians = {piece: median(times) for piece, times in seconds.items() if times}

        def curve(kind: str, name: str, context: int, depth: tuple[int, ...] = ()) -> Curve:
            """Empty unless its ends were measured: a part of it says nothing of the rest."""
            on = [
                piece
                for piece in self.all
                if (piece.group, piece.context) == ((kind, name), context)
                if piece.at[:-1] == depth
            ]
            if not on or not {on[0], on[-1]} <= medians.keys():
                return Curve((), ())
            on = [piece for piece in on if piece in medians]
            at = tuple(float(piece.at[-1]) for piece in on)
            return Curve(at, tuple(medians[piece] for piece in on))

        def caught(name: str) -> Curve:
            missed = curve(CATCH_UP, name, self.drafting_at)
            return Curve((0.0, *missed.at), (0.0, *missed.seconds))

        def trees(name: str) -> dict[int, Curve]:
            _, depths, _ = self._axes(name)
            made = {depth: curve(TREE, name, self.drafting_at, (depth,)) for depth in depths}
            return {depth: curve for depth, curve in made.items() if curve.at}

        passes = {context: curve(VERIFY, "", context) for context in self.contexts}
        return CostModel(
            dict(host),
            {context: curve for context, curve in passes.items() if curve.at},
            {name: curve(DRAFT, name, self.drafting_at) for name in self.asked},
            {name: caught(name) for name in self.asked},
            {name: trees(name) for name, one in self.asked.items() if one.nodes},
        )


def _ends(group: Sequence[Piece]) -> set[Piece]:
    """The pieces at the ends of all axes of a group; a few more of passes, which cost in steps."""
    axes = [sorted(set(axis)) for axis in zip(*((p.context, *p.at) for p in group), strict=True)]
    ends = [{axis[0], axis[-1]} for axis in axes]
    if group[0].kind == VERIFY:
        ends[1] |= {n for n in axes[1] if n in COARSE_ROWS}
    return {piece for piece in group if (piece.context, *piece.at) in product(*ends)}


def everything(drafters: Mapping[str, Drafter]) -> dict[str, Asked]:
    """All that drafters can do."""
    return {
        name: Asked(
            drafter.max_draft_length,
            drafter.max_draft_length if drafter.max_tree_nodes else 0,
            drafter.max_tree_nodes,
        )
        for name, drafter in drafters.items()
    }


def needed(arms: Iterable[Arm]) -> dict[str, Asked]:
    """What some arms ask of their drafters; with a chain of one token at least."""
    asked: dict[str, Asked] = {}
    for arm in (part for one in arms for part in one.parts):
        before = asked.get(arm.drafter, Asked(1))
        wanted = Asked(arm.length) if arm.nodes is None else Asked(1, arm.length, arm.nodes)
        asked[arm.drafter] = Asked(*map(max, before, wanted))
    return asked


def fitting_contexts(
    target: Target, drafters: Mapping[str, Drafter], contexts: Sequence[int], room: int = ROOM
) -> list[int]:
    """The contexts in ascending order, shortened to what fits a `random_session`."""
    longest = max([LENGTHS[-1], *(drafter.max_draft_length for drafter in drafters.values())])
    limit = target.context_limit - room - longest - 1
    return sorted({min(context, limit) for context in contexts})


def random_session(
    target: Target, drafters: Mapping[str, Drafter], context: int, room: int = ROOM
) -> Session:
    """A prefilled session over `context` random tokens, with room for as many new ones.

    The arithmetic costs the same whatever the text says.
    """
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(target.vocab_size, (context,), generator=generator)
    session = Session(target, prompt, GreedyRule(), room, drafters)
    session.prefill()
    return session


def _up_to(points: Sequence[int], asked: int, most: int) -> list[int]:
    """The points up to the first that is not below what is asked, within what is possible."""
    possible = [*(point for point in points if point < most), most]
    beyond = [point for point in possible if point >= asked]
    return [point for point in possible if point < asked] + beyond[:1]
