"""What any arm would have done at the positions of a traced text.

Traces hold whole arms of one drafter. What others do follows from these exactly. At a position, a
cascade does what its first part does that has something to verify. Of a graft the text takes the
longest path there is; every beginning of a path is in the same part as its end, so the graft
commits what its best part does. Only its rows must be counted, for parts share nodes.

Notation: n = positions at which a round can begin, budget = most tokens of a draft.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, Graft
from draftgym.rollouts.traces.trace import ArmTrace, TextTrace, draft_key


@dataclass(frozen=True)
class AskedPart:
    """A part of an arm, by position.

    Attributes:
        arm: The part.
        drafted: What its drafter would have drafted; less where the arm stops early.
        where: Where it is asked `[n]`.
    """

    arm: Arm
    drafted: ArmTrace
    where: NDArray[np.bool_]


def made_by(text: TextTrace, arm: Arm) -> ArmTrace:
    """What rounds with an arm would have verified; drafting nothing, they commit one token.

    Args:
        text: The text.
        arm: Any arm whose parts were traced (`TraceSet.check_arms`).
    """
    parts = [_verified(text, part) for part in arm.parts]
    if isinstance(arm, Graft):
        return ArmTrace(
            np.max([one.committed for one in parts], 0),
            _count_together([_drafted_nodes(text, part) for part in arm.parts]),
            np.max([one.depth for one in parts], 0),
        )
    made = parts[-1] if parts else _nothing(len(text))
    for one in reversed(parts[:-1]):
        made = _where(one.drafted > 0, one, made)
    return made


def asked_of(text: TextTrace, arm: Arm) -> Iterator[AskedPart]:
    """The parts of an arm, in order.

    A cascade asks a part where all before it have nothing to verify, a graft asks all everywhere.
    """
    where = np.ones(len(text), dtype=np.bool_)
    for part in arm.parts:
        verified = _verified(text, part)
        yield AskedPart(part, _drafted(text, part, verified), where)
        if not isinstance(arm, Graft):
            where = where & (verified.drafted == 0)


def _drafted(text: TextTrace, arm: Arm, verified: ArmTrace) -> ArmTrace:
    """What an arm of one drafter would have drafted: a level beyond what it is sure of."""
    made = text.arms[str(arm.whole)]
    if not arm.sure:
        return made
    depth = np.minimum(made.depth, verified.depth + 1)
    return ArmTrace(made.committed, made.drafted if arm.nodes else depth, depth)


def path_scores(text: TextTrace, arm: Arm) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What an arm of one drafter thinks of all that it drafts, whatever it must be sure of.

    Args:
        text: The text.
        arm: The arm.

    Returns:
        The score of each node's path from the anchor on, as a log-probability, -inf where there is
        none; and which nodes are first tokens. Both `[n, budget]`.
    """
    key, rows = draft_key(arm), np.arange(len(text))
    own = text.scores.get(key, text.logprobs[key]).astype(np.float64)
    sizes, parents = text.arms[str(arm.whole)].drafted, text.drafts[key].parents
    if parents is None:
        parents = np.broadcast_to(np.arange(own.shape[1]) - 1, own.shape)
    paths = np.full(own.shape, -np.inf)
    for node in range(own.shape[1]):
        above = np.where(parents[:, node] >= 0, paths[rows, parents[:, node]], 0.0)
        paths[:, node] = np.where(node < sizes, own[:, node] + above, -np.inf)
    return paths, np.asarray(parents < 0)


def matches(text: TextTrace, arm: Arm) -> NDArray[np.int64]:
    """Newest tokens that agree with where an arm of one drafter would copy from `[n]`."""
    return text.matches[draft_key(arm)]


@lru_cache(maxsize=8)  # for each arm several callers ask in turn
def _verified(text: TextTrace, arm: Arm) -> ArmTrace:
    """What an arm of one drafter would have verified."""
    if arm.sure:
        return _facts(_drafted_nodes(text, arm), text.tokens)
    made = text.arms[str(arm.whole)]
    if arm.least:
        return _where(matches(text, arm) < arm.least, _nothing(len(text)), made)
    return made


@dataclass(frozen=True)
class _Nodes:
    """What an arm of one drafter would have drafted, a parent before its children.

    Attributes:
        tokens: Token ids `[n, budget]`.
        parents: Index of each node's parent, -1 for the anchor `[n, budget]`.
        verified: Which of them are verified `[n, budget]`.
    """

    tokens: NDArray[np.int32]
    parents: NDArray[np.int64]
    verified: NDArray[np.bool_]


def _drafted_nodes(text: TextTrace, arm: Arm) -> _Nodes:
    key = draft_key(arm)
    draft, sizes = text.drafts[key], text.arms[str(arm.whole)].drafted
    order = np.arange(draft.tokens.shape[1])
    there = order < sizes[:, None]
    parents = np.where(there, order - 1 if draft.parents is None else draft.parents, -1)
    if arm.least:
        there &= matches(text, arm)[:, None] >= arm.least
    if arm.sure:
        there &= path_scores(text, arm)[0] >= math.log(arm.sure)
    return _Nodes(draft.tokens, parents, there)


def _count_together(parts: Sequence[_Nodes]) -> NDArray[np.int64]:
    """Nodes that a tree of several drafts has verified `[n]`; equal paths are one node."""
    every = np.arange(len(parts[0].tokens))
    tokens = np.concatenate([part.tokens for part in parts], 1)
    above = np.full(tokens.shape, -1)  # each node's parent, by the first node of that path
    rows = np.zeros(tokens.shape, dtype=np.bool_)
    first = 0
    for part in parts:
        budget = part.tokens.shape[1]
        met = np.full((len(every), budget + 1), -1)  # last column: the anchor
        for node, column in enumerate(range(first, first + budget)):
            above[:, column] = met[every, part.parents[:, node]]
            same = above[:, : column + 1] == above[:, column, None]
            same &= tokens[:, : column + 1] == tokens[:, column, None]
            met[:, node] = same.argmax(1)
            rows[every, met[:, node]] |= part.verified[:, node]
        first += budget
    counted: NDArray[np.int64] = rows.sum(1)
    return counted


def _facts(nodes: _Nodes, tokens: NDArray[np.int64]) -> ArmTrace:
    """What rounds verify, how deep it goes, and how much of it the text goes on with."""
    count, budget = nodes.tokens.shape
    every, left = np.arange(count), count - np.arange(count)  # a position's tokens to come
    behind = np.append(tokens, np.full(budget, -1))
    depths, ours = np.zeros((2, count, budget + 1), dtype=np.int64)  # last column: the anchor
    ours[:, -1] = 1
    for node in range(budget):
        parent = nodes.parents[:, node]
        depths[:, node] = 1 + depths[every, parent]
        ours[:, node] = ours[every, parent] & nodes.verified[:, node]
        ours[:, node] &= nodes.tokens[:, node] == behind[every + depths[:, node]]
    verified = np.where(nodes.verified, depths[:, :-1], 0)
    accepted = np.where(ours, depths, 0).max(1)
    return ArmTrace(
        np.minimum(accepted + 1, left), nodes.verified.sum(1), verified.max(1, initial=0)
    )


def _nothing(positions: int) -> ArmTrace:
    none = np.zeros(positions, dtype=np.int64)
    return ArmTrace(none + 1, none, none)


def _where(mask: NDArray[np.bool_], one: ArmTrace, other: ArmTrace) -> ArmTrace:
    return ArmTrace(
        np.where(mask, one.committed, other.committed),
        np.where(mask, one.drafted, other.drafted),
        np.where(mask, one.depth, other.depth),
    )
