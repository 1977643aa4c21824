"""What any arm would have done at the positions of a traced text.

Traces hold arms of one drafter. What an arm of several does follows from these exactly: at a
position, a cascade does what its first part does that drafts something. Of a graft the text takes
the longest path there is; every beginning of a path is in the same part as its end, so the graft
commits what its best part does. Only its rows must be counted, for parts share nodes.

Notation: n = positions at which a round can begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, Graft
from draftgym.rollouts.traces.trace import ArmTrace, Drafts, TextTrace


def made_by(text: TextTrace, arm: Arm) -> ArmTrace:
    """What rounds with an arm would have done; drafting nothing, they commit one token.

    Args:
        text: The text.
        arm: Any arm whose parts were traced (`TraceSet.check_arms`).
    """
    parts = [_made_alone(text, part) for part in arm.parts]
    if isinstance(arm, Graft):
        drafts = [_drafts(text, part) for part in arm.parts]
        return ArmTrace(
            np.max([one.committed for one in parts], 0),
            merged_sizes(drafts, [one.drafted for one in parts]),
            np.max([one.depth for one in parts], 0),
        )
    whole = parts[-1] if parts else _nothing(len(text))
    for one in reversed(parts[:-1]):
        whole = _where(one.drafted > 0, one, whole)
    return whole


def asked_of(text: TextTrace, arm: Arm) -> list[tuple[Arm, ArmTrace, NDArray[np.bool_]]]:
    """The parts of an arm: each one, what it would have done, and where it is asked `[n]`.

    A cascade asks a part where all before it draft nothing, a graft asks all everywhere.
    """
    found = []
    where = np.ones(len(text), dtype=np.bool_)
    for part in arm.parts:
        made = _made_alone(text, part)
        found.append((part, made, where))
        if not isinstance(arm, Graft):
            where = where & (made.drafted == 0)
    return found


def merged_sizes(drafts: Sequence[Drafts], sizes: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Nodes of the tree that several drafts make together; what they share counts once `[n]`.

    Args:
        drafts: Chains or trees by position.
        sizes: How many nodes of each count `[n]`.
    """
    together = zip(drafts, sizes, strict=True)
    paths = zip(*(map(set, _paths(draft, size)) for draft, size in together), strict=True)
    return np.array([len(set().union(*some)) for some in paths], dtype=np.int64)


def _paths(draft: Drafts, sizes: NDArray[np.int64]) -> list[list[tuple[int, ...]]]:
    """Per position every node, as the tokens that lead to it."""
    parents = draft.parents
    if parents is None:
        parents = np.broadcast_to(np.arange(draft.tokens.shape[1]) - 1, draft.tokens.shape)
    found = []
    for tokens, above, size in zip(draft.tokens.tolist(), parents.tolist(), sizes, strict=True):
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(tokens[:size], above, strict=False):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        found.append(paths)
    return found


def _made_alone(text: TextTrace, arm: Arm) -> ArmTrace:
    """What an arm of one drafter would have done."""
    made = text.arms[_traced(arm)]
    if not arm.least:
        return made
    return _where(text.matches[arm.drafter] < arm.least, _nothing(len(text)), made)


def _drafts(text: TextTrace, arm: Arm) -> Drafts:
    return text.drafts[arm.drafter if arm.nodes is None else _traced(arm)]


def _traced(arm: Arm) -> str:
    """What the arm of one drafter is called in traces, which hold every match."""
    return str(replace(arm, least=0))


def _nothing(positions: int) -> ArmTrace:
    none = np.zeros(positions, dtype=np.int64)
    return ArmTrace(none + 1, none, none)


def _where(mask: NDArray[np.bool_], one: ArmTrace, other: ArmTrace) -> ArmTrace:
    return ArmTrace(
        np.where(mask, one.committed, other.committed),
        np.where(mask, one.drafted, other.drafted),
        np.where(mask, one.depth, other.depth),
    )
