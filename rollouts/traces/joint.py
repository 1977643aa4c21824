"""What any arm would have done at the positions of a traced text.

Traces hold whole arms of one drafter. What others do follows from these exactly. At a position, a
cascade does what its first part does that has something to verify. Of a graft the text takes the
longest path there is; every beginning of a path is in the same part as its end, so the graft
commits what its best part does. Only its rows must be counted, for parts share nodes.

Notation: n = positions at which a round can begin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, Graft
from draftgym.rollouts.traces.trace import ArmTrace, TextTrace

Path = tuple[int, ...]
"""A node of a tree, as the tokens that lead to it."""


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
        nodes = zip(*(_verified_nodes(text, part) for part in arm.parts), strict=True)
        return ArmTrace(
            np.max([one.committed for one in parts], 0),
            np.array([len(set[Path]().union(*some)) for some in nodes], dtype=np.int64),
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
    key, rows = _key(arm), np.arange(len(text))
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
    return text.matches[_key(arm)]


def _verified(text: TextTrace, arm: Arm) -> ArmTrace:
    """What an arm of one drafter would have verified."""
    made = text.arms[str(arm.whole)]
    if arm.sure:
        behind = text.tokens.tolist()
        nodes = enumerate(_verified_nodes(text, arm))
        facts = [_facts(some, tuple(behind[position + 1 :])) for position, some in nodes]
        return ArmTrace(*np.array(facts, dtype=np.int64).reshape(-1, 3).T)
    if arm.least:
        return _where(matches(text, arm) < arm.least, _nothing(len(text)), made)
    return made


def _verified_nodes(text: TextTrace, arm: Arm) -> Iterator[set[Path]]:
    """The nodes that an arm of one drafter would have verified, by position."""
    key = _key(arm)
    draft, sizes = text.drafts[key], text.arms[str(arm.whole)].drafted
    if arm.least:
        sizes = np.where(text.matches[key] < arm.least, 0, sizes)
    parents = draft.parents
    if parents is None:
        parents = np.broadcast_to(np.arange(draft.tokens.shape[1]) - 1, draft.tokens.shape)
    columns = (sizes, draft.tokens, parents, text.scores.get(key, text.logprobs[key]))
    least = math.log(arm.sure) if arm.sure else -math.inf
    for size, tokens, above, scores in zip(*(c.tolist() for c in columns), strict=True):
        paths: list[Path] = []
        sums: list[float] = []
        for node in range(size):
            parent = above[node]
            paths.append((*(paths[parent] if parent >= 0 else ()), tokens[node]))
            sums.append(scores[node] + (sums[parent] if parent >= 0 else 0.0))
        yield {path for path, total in zip(paths, sums, strict=True) if total >= least}


def _key(arm: Arm) -> str:
    """What its tokens are called in traces: chains are the beginning of their drafter's longest."""
    return arm.drafter if arm.nodes is None else str(arm.whole)


def _facts(nodes: set[Path], text: Path) -> tuple[int, int, int]:
    """Committed and verified tokens of a round before `text`, and how deep they go."""
    accepted = 0
    while accepted < len(text) and text[: accepted + 1] in nodes:
        accepted += 1
    return min(accepted + 1, len(text)), len(nodes), max(map(len, nodes), default=0)


def _nothing(positions: int) -> ArmTrace:
    none = np.zeros(positions, dtype=np.int64)
    return ArmTrace(none + 1, none, none)


def _where(mask: NDArray[np.bool_], one: ArmTrace, other: ArmTrace) -> ArmTrace:
    return ArmTrace(
        np.where(mask, one.committed, other.committed),
        np.where(mask, one.drafted, other.drafted),
        np.where(mask, one.depth, other.depth),
    )
