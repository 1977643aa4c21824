"""Drawing trees: the part that drafters share.

Both kinds of tree keep the nodes with the best path scores (sums of a rule's `Candidates.scores`).
A score is a log-probability, so no child outranks its parent and the best nodes always form a tree.

* `grow_trees` serves autoregressive drafters (EAGLE-2's dynamic tree, arXiv 2406.16858): level by
  level the most promising nodes are run through the drafter in one batched step.
* `best_first_tree` serves block drafters (DDTree, arXiv 2604.12989): all levels are scored by one
  pass, independently of the path, and a heap walks the prefixes from best to worst.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draftgym.decoding.drafting import MAX_TREE_NODES, DraftShape
from draftgym.decoding.verify.base import Candidates
from draftgym.decoding.verify.proposal import Proposal


def frontier_width(nodes: int) -> int:
    """Most nodes that one step of `grow_trees` runs: the square root of the budget, rounded up.

    Every row costs time, on a CPU most of all. Budgets of 4, 16 and 64 get 2, 4 and 8 rows; EAGLE-2
    gives 60 nodes 10 rows.
    """
    return math.isqrt(nodes - 1) + 1


def children_per_node(nodes: int) -> int:
    """How many children of a node are looked at: twice the width, for they cost next to nothing."""
    return 2 * frontier_width(nodes)


def scratch_rows(depth: int, nodes: int = MAX_TREE_NODES) -> int:
    """Most rows that the steps of `grow_trees` leave in a drafter's cache."""
    return (depth - 1) * frontier_width(nodes)


@dataclass(frozen=True)
class Frontier:
    """Nodes of one level of all trees, to be run through a drafter in one batched step.

    All of it lies on the host, where trees are drawn.

    Attributes:
        depth: Distance from the anchor, 1 in the first step.
        tokens: Token ids `[w]`.
        parents: Row of each one's parent in the previous step `[w]`; the step before the first is
            the rows that gave the start, one per tree.
        places: Which tree each belongs to `[w]`.
        visible: Who sees whom among the rows of all steps so far, this one's last: bool `[w, r]`.
    """

    depth: int
    tokens: Tensor
    parents: Tensor
    places: Tensor
    visible: Tensor


@dataclass(eq=False)
class _Node:
    """A candidate for the tree; its score is its path's, `own` its part of it.

    `row` is where a step has put it, -1 before.
    """

    score: float
    depth: int
    token: int
    logprob: float
    own: float
    parent: _Node | None
    row: int = -1


class _Tree:
    """A tree that is being drawn: its best nodes so far, in order."""

    def __init__(self, place: int, shape: DraftShape, width: int | None) -> None:
        self.place, self.shape = place, shape
        self.width = frontier_width(shape.budget) if width is None else width
        self.nodes: list[_Node] = []

    def level(self, depth: int) -> list[_Node]:
        """The nodes to run next; none when the tree is finished."""
        if depth >= self.shape.depth:
            return []
        # A full tree admits only what beats its worst node, which only a better parent can.
        full = len(self.nodes) == self.shape.budget
        bar = self.nodes[-1].score if full else -math.inf
        found = [node for node in self.nodes if node.depth == depth and node.score > bar]
        if found and self.shape.stops_at(found[0].score):
            return []
        return found[: self.width]

    def add(self, parent: _Node | None, rows: tuple[list[Any], ...]) -> None:
        """Takes in the children of a node: tokens, log-probabilities and scores."""
        above, depth = (parent.score, parent.depth) if parent else (0.0, 0)
        self.nodes += [
            _Node(above + score, depth + 1, token, logprob, score, parent)
            for token, logprob, score in zip(*rows, strict=True)
        ]

    def keep_best(self) -> None:
        """Drops what does not fit; of equal ones the shallower stay, so that parents come first."""
        self.nodes = sorted(self.nodes, key=lambda n: (-n.score, n.depth))[: self.shape.budget]

    def proposal(self) -> Proposal:
        """The tree."""
        index = {id(node): i for i, node in enumerate(self.nodes)}
        parents = [-1 if node.parent is None else index[id(node.parent)] for node in self.nodes]
        return Proposal(
            torch.tensor([node.token for node in self.nodes]),
            torch.tensor(parents),
            torch.tensor([node.logprob for node in self.nodes]),
            scores=torch.tensor([node.own for node in self.nodes]),
        )


def grow_trees(
    shapes: Sequence[DraftShape],
    start: Candidates,
    expand: Callable[[Frontier], Candidates],
    width: int | None = None,
) -> list[Proposal]:
    """Draws trees of an autoregressive drafter, side by side.

    A node that is not among the best `shape.nodes` so far never will be, and neither will its
    children: such nodes are not run, and a tree is finished when none is left, or none is sure
    enough (`DraftShape.sure`).

    Args:
        shapes: Depth and node budget of each tree `[R]`.
        start: Candidates after the anchors, one row per tree.
        expand: Runs a frontier through the drafter and gives the candidates after each of its
            nodes, one row per node.
        width: Most nodes of a tree per step; None takes `frontier_width`.

    Returns:
        Per tree the best nodes found, from best to worst: parents before children, and of siblings
        the likelier first.
    """
    trees = [_Tree(place, shape, width) for place, shape in enumerate(shapes)]
    _add(trees, [None] * len(trees), start)
    rows_before, rows = 0, 0
    for depth in range(1, max(shape.depth for shape in shapes)):
        level = [(tree, node) for tree in trees for node in tree.level(depth)]
        if not level:
            break
        for row, (_, node) in enumerate(level, start=rows):
            node.row = row
        found = expand(_frontier(level, depth, rows_before, rows))
        rows_before, rows = rows, rows + len(level)
        _add([tree for tree, _ in level], [node for _, node in level], found)
    return [tree.proposal() for tree in trees]


def _add(trees: Sequence[_Tree], parents: Sequence[_Node | None], found: Candidates) -> None:
    columns = [column.tolist() for column in (found.tokens, found.logprobs, found.scores)]
    for tree, parent, *rows in zip(trees, parents, *columns, strict=True):
        tree.add(parent, tuple(rows))
    for tree in dict.fromkeys(trees):
        tree.keep_best()


def _frontier(
    level: Sequence[tuple[_Tree, _Node]], depth: int, rows_before: int, rows: int
) -> Frontier:
    visible = np.zeros((len(level), rows + len(level)), dtype=np.bool_)
    for line, (_, node) in enumerate(level):
        ancestor: _Node | None = node
        while ancestor is not None:
            visible[line, ancestor.row] = True
            ancestor = ancestor.parent
    parents = [node.parent.row - rows_before if node.parent else t.place for t, node in level]
    return Frontier(
        depth,
        torch.tensor([node.token for _, node in level]),
        torch.tensor(parents),
        torch.tensor([tree.place for tree, _ in level]),
        torch.from_numpy(visible),
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
    columns = (levels.tokens, levels.logprobs, levels.scores)
    return best_prefixes(shape, *(column[:, : shape.budget].tolist() for column in columns))


def best_prefixes(
    shape: DraftShape,
    tokens: list[list[int]],
    logprobs: list[list[float]],
    scores: list[list[float]],
) -> Proposal:
    """As `best_first_tree`, of candidates that are lists; it looks at as many as it has nodes."""
    depth_limit, count = min(shape.depth, len(tokens)), min(shape.budget, len(tokens[0]))
    drawn: list[tuple[float, ...]] = []  # parent, token, logprob, score
    # Entries: path cost, level, parent, rank within the level, cost of the parent's path. Only the
    # best prefix not yet drawn matters, so a node brings in its next sibling and its first child.
    heap = [(-scores[0][0], 0, -1, 0, 0.0)]
    while heap and len(drawn) < shape.budget:
        cost, level, parent, rank, above = heapq.heappop(heap)
        node = len(drawn)
        facts = (column[level][rank] for column in (tokens, logprobs, scores))
        drawn.append((parent, *facts))
        if rank + 1 < count:
            sibling = above - scores[level][rank + 1]
            heapq.heappush(heap, (sibling, level, parent, rank + 1, above))
        if level + 1 < depth_limit:
            heapq.heappush(heap, (cost - scores[level + 1][0], level + 1, node, 0, cost))
    parents, ids, logprob, own = (torch.tensor(column) for column in zip(*drawn, strict=True))
    return Proposal(ids, parents, logprob, scores=own)
