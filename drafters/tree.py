"""Drawing drafts, chains and trees: the part that drafters share.

`grow_chain` takes one token per step. Both kinds of tree keep the nodes with the best path scores
(sums of a rule's `Candidates.scores`). A score is a log-probability, so no child outranks its
parent and the best nodes always form a tree.

* `grow_tree` serves autoregressive drafters (EAGLE-2's dynamic tree, arXiv 2406.16858): level by
  level the most promising nodes are run through the drafter in one batched step.
* `best_first_tree` serves block drafters (DDTree, arXiv 2604.12989): all levels are scored by one
  pass, independently of the path, and a heap walks the prefixes from best to worst.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.drafting import MAX_TREE_NODES, DraftShape
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.verification import Candidates, Drafted


def grow_chain(depth: int, step: Callable[[Tensor | None], Drafted]) -> Proposal:
    """Draws the chain of an autoregressive drafter.

    Args:
        depth: Tokens to draft.
        step: Gives the next token `[1]` with its log-probability and distribution, after the one
            drafted last (`[1]`; None in the first step).
    """
    drawn: list[Drafted] = []
    for _ in range(depth):
        drawn.append(step(drawn[-1][0] if drawn else None))
    tokens, logprobs, probs = zip(*drawn, strict=True)
    sampled = [row for row in probs if row is not None]
    return Proposal.chain(
        torch.cat(tokens), torch.cat(logprobs), torch.cat(sampled) if sampled else None
    )


def frontier_width(nodes: int) -> int:
    """Most nodes that one step of `grow_tree` runs: the square root of the budget, rounded up.

    Every row costs time, on a CPU most of all. Budgets of 4, 16 and 64 get 2, 4 and 8 rows; EAGLE-2
    gives 60 nodes 10 rows.
    """
    return math.isqrt(nodes - 1) + 1


def children_per_node(nodes: int) -> int:
    """How many children of a node are looked at: twice the width, for they cost next to nothing."""
    return 2 * frontier_width(nodes)


def scratch_rows(depth: int, nodes: int = MAX_TREE_NODES) -> int:
    """Most rows that the steps of `grow_tree` leave in a drafter's cache."""
    return (depth - 1) * frontier_width(nodes)


@dataclass(frozen=True)
class Frontier:
    """Nodes of one level, to be run through a drafter in one batched step.

    Attributes:
        depth: Distance from the anchor, 1 in the first step.
        tokens: Token ids `[w]`.
        parents: Row of each one's parent in the previous step `[w]`; the step before the first is
            the one row that gave the start, so there all are 0.
        visible: Who sees whom among the rows of all steps so far, this one's last: bool `[w, r]`.
            Every row also sees what was there before the first step.
    """

    depth: int
    tokens: Tensor
    parents: Tensor
    visible: Tensor


@dataclass(eq=False)
class _Node:
    """A candidate for the tree; `row` is where a step has put it, -1 before."""

    score: float
    depth: int
    token: int
    logprob: float
    parent: _Node | None
    row: int = -1


def grow_tree(
    shape: DraftShape,
    start: Candidates,
    expand: Callable[[Frontier], Candidates],
    width: int | None = None,
) -> Proposal:
    """Draws the tree of an autoregressive drafter.

    A node that is not among the best `shape.nodes` so far never will be, and neither will its
    children: such nodes are not run, and the tree is finished when none is left.

    Args:
        shape: Depth and node budget.
        start: Candidates after the anchor, one row.
        expand: Runs a frontier through the drafter and gives the candidates after each of its
            nodes, one row per node.
        width: Most nodes per step; None takes `frontier_width`.

    Returns:
        The best nodes found, from best to worst: parents before children, and of siblings the
        likelier first.
    """
    growing = tree_growth(shape, start, width)
    try:
        frontier = next(growing)
        while True:
            frontier = growing.send(expand(frontier))
    except StopIteration as finished:
        proposal: Proposal = finished.value
        return proposal


def tree_growth(
    shape: DraftShape, start: Candidates, width: int | None = None
) -> Generator[Frontier, Candidates, Proposal]:
    """Does what `grow_tree` says as a coroutine: many trees can share their drafter's steps.

    Yields frontiers, is sent their candidates, and returns the tree.
    """
    budget = shape.budget
    width = frontier_width(budget) if width is None else width
    kept = _best(_children([None], start, 1), budget)
    rows_before = rows = 0
    for depth in range(1, shape.depth):
        # A full tree admits only what beats its worst node, which only a better parent can.
        bar = kept[-1].score if len(kept) == budget else -math.inf
        level = [node for node in kept if node.depth == depth and node.score > bar][:width]
        if not level:
            break
        for row, node in enumerate(level, start=rows):
            node.row = row
        frontier = _frontier(level, depth, rows_before, rows)
        rows_before, rows = rows, rows + len(level)
        found = yield frontier
        kept = _best([*kept, *_children(level, found, depth + 1)], budget)
    return _proposal(kept)


def _children(parents: Sequence[_Node | None], candidates: Candidates, depth: int) -> list[_Node]:
    columns = (candidates.tokens, candidates.logprobs, candidates.scores)
    tokens, logprobs, scores = (column.tolist() for column in columns)
    return [
        _Node((parent.score if parent else 0.0) + score, depth, token, logprob, parent)
        for parent, *rows in zip(parents, tokens, logprobs, scores, strict=True)
        for token, logprob, score in zip(*rows, strict=True)
    ]


def _best(nodes: list[_Node], budget: int) -> list[_Node]:
    """The best nodes in order; of equal ones the shallower, so that parents come first."""
    return sorted(nodes, key=lambda node: (-node.score, node.depth))[:budget]


def _frontier(level: list[_Node], depth: int, rows_before: int, rows: int) -> Frontier:
    visible = np.zeros((len(level), rows + len(level)), dtype=np.bool_)
    for line, node in enumerate(level):
        ancestor: _Node | None = node
        while ancestor is not None:
            visible[line, ancestor.row] = True
            ancestor = ancestor.parent
    parents = [node.parent.row - rows_before if node.parent else 0 for node in level]
    return Frontier(
        depth,
        torch.tensor([node.token for node in level]),
        torch.tensor(parents),
        torch.from_numpy(visible),
    )


def _proposal(nodes: list[_Node]) -> Proposal:
    index = {id(node): i for i, node in enumerate(nodes)}
    return Proposal(
        torch.tensor([node.token for node in nodes]),
        torch.tensor([-1 if node.parent is None else index[id(node.parent)] for node in nodes]),
        torch.tensor([node.logprob for node in nodes]),
    )


def best_first_tree(shape: DraftShape, levels: Candidates) -> Proposal:
    """Draws the tree of a block drafter.

    Args:
        shape: Depth and node budget.
        levels: Candidates at each depth, whatever came before: row i for depth i + 1. With as many
            candidates as nodes, the result is exactly the best that the budget allows.

    Returns:
        The best prefixes, from best to worst: parents before children, and of siblings the likelier
        first.
    """
    tokens, logprobs, scores = (
        column.tolist() for column in (levels.tokens, levels.logprobs, levels.scores)
    )
    depth_limit, count = min(shape.depth, len(tokens)), len(tokens[0])
    drawn: list[tuple[int, int, float]] = []  # token, parent, logprob
    # Entries: path cost, level, parent, rank within the level, cost of the parent's path. Only the
    # best prefix not yet drawn matters, so a node brings in its next sibling and its first child.
    heap = [(-scores[0][0], 0, -1, 0, 0.0)]
    while heap and len(drawn) < shape.budget:
        cost, level, parent, rank, above = heapq.heappop(heap)
        node = len(drawn)
        drawn.append((tokens[level][rank], parent, logprobs[level][rank]))
        if rank + 1 < count:
            sibling = above - scores[level][rank + 1]
            heapq.heappush(heap, (sibling, level, parent, rank + 1, above))
        if level + 1 < depth_limit:
            heapq.heappush(heap, (cost - scores[level + 1][0], level + 1, node, 0, cost))
    columns = zip(*drawn, strict=True)
    return Proposal(*(torch.tensor(column) for column in columns))
