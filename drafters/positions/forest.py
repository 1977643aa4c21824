"""Chains and trees of many places of a text that share their steps.

Where a text is known, all that several arms of a drafter would draft at each of its positions is
asked for at once, and much of it is the same: a chain is a path of every tree, and trees of two
shapes begin alike. Here a node is run once, whoever wants it, and rows of any depth take a step
together. The trees are those of `draftgym.drafters.tree.grow_trees`, number for number, but that a
level is run from its best node on: what the first ones lead to often leaves the others no place in
the tree, and then they are not run.

Notation: R = places, K = children of a node that are looked at. A node is told by its number, K
times the row of its parent plus its rank among the parent's children.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.verify.base import Candidates
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.tree import children_per_node, frontier_width

Nodes = NDArray[np.int64]
Wanted = Generator[Nodes, None, list[Proposal]]
"""Someone who draws: yields numbers of nodes to run, gets them run, and returns what was drawn."""
NONE = -1


@dataclass(frozen=True)
class Step:
    """Rows to run, all of it on the host.

    Attributes:
        tokens: Their token ids `[w]`.
        parents: Rows of their parents among all that have run `[w]`; the first R are the places.
        places: Which place each belongs to `[w]`.
        depths: Distance from the anchor `[w]`.
        paths: Rows that each descends from, in any order, and none of others: `[w, p]`, filled up
            with `NONE`. The first is the row itself, counted behind all that have run.
    """

    tokens: Tensor
    parents: Tensor
    places: Tensor
    depths: Tensor
    paths: Tensor


class Forest:
    """What is known of the nodes of all places.

    Args:
        start: Candidates after the anchors `[R, K]`.
        run: Runs a step, and gives the candidates after each of its rows `[w, K]`.
    """

    def __init__(self, start: Candidates, run: Callable[[Step], Candidates]) -> None:
        self.run, (places, self.count) = run, start.tokens.shape
        self.place = np.arange(places)
        self.depth = np.zeros(places, dtype=np.int64)
        self.node = np.full(places, NONE)  # number of each row; the anchors have none
        self._paths = [[row] for row in range(places)]
        self.tokens, self.logprobs, self.own = (
            column.numpy() for column in (start.tokens, start.logprobs, start.scores)
        )
        self.scores = self.own.astype(np.float64)  # of whole paths
        self.row = np.full(places * self.count, NONE)  # of each node; `NONE` where it has not run

    def grow(self, wanting: Sequence[Wanted]) -> list[list[Proposal]]:
        """Draws what some want side by side; returns what each of them drew."""
        drawn: list[list[Proposal]] = [[] for _ in wanting]
        open_, wants = list(enumerate(wanting)), list[Nodes]()
        while True:
            if wants:
                self._run(np.unique(np.concatenate(wants)))
            wants, going = [], []
            for index, one in open_:
                try:
                    wants.append(next(one))
                    going.append((index, one))
                except StopIteration as end:
                    drawn[index] = end.value
            open_ = going
            if not open_:
                return drawn

    def _run(self, nodes: Nodes) -> None:
        """Runs those of some nodes that have not run."""
        nodes = nodes[self.row[nodes] == NONE]
        if not len(nodes):
            return
        parents, ranks = np.divmod(nodes, self.count)
        first = len(self.place)
        rows = np.arange(first, first + len(nodes))
        paths = [[row, *self._paths[parent]] for row, parent in zip(rows, parents, strict=True)]
        longest = max(map(len, paths))
        padded = np.array([path + [NONE] * (longest - len(path)) for path in paths])
        places, depths = self.place[parents], self.depth[parents] + 1
        columns = (self.tokens[parents, ranks], parents, places, depths, padded)
        found = self.run(Step(*map(torch.from_numpy, columns)))
        above = self.scores[parents, ranks]
        self.row[nodes] = rows
        self._paths += paths
        self.place = np.concatenate([self.place, places])
        self.depth = np.concatenate([self.depth, depths])
        self.node = np.concatenate([self.node, nodes])
        self.tokens = np.concatenate([self.tokens, found.tokens.numpy()])
        self.logprobs = np.concatenate([self.logprobs, found.logprobs.numpy()])
        self.own = np.concatenate([self.own, found.scores.numpy()])
        scores = above[:, None] + found.scores.numpy().astype(np.float64)
        self.scores = np.concatenate([self.scores, scores])
        self.row = np.concatenate([self.row, np.full(len(nodes) * self.count, NONE)])

    def chains(self, lengths: Sequence[int]) -> Wanted:
        """The likeliest child of the likeliest child and so on, so many at every place."""
        wanted = np.array(lengths)
        path = [np.arange(len(wanted))]  # the rows that were run, of every place
        for depth in range(1, max(lengths)):
            nodes = path[-1] * self.count
            yield nodes[wanted > depth]
            path.append(np.where(wanted > depth, self.row[nodes], 0))
        rows = np.stack(path, 1)
        facts = (self.tokens, self.logprobs, self.own)
        columns = (torch.from_numpy(fact[rows, 0]) for fact in facts)
        return [
            Proposal.chain(t[:n], p[:n], scores=s[:n])
            for t, p, s, n in zip(*columns, lengths, strict=True)
        ]

    def trees(self, shapes: Sequence[DraftShape]) -> Wanted:
        """The dynamic tree of every place, level by level and in a level node by node."""
        budget = shapes[0].budget
        width, look = frontier_width(budget), min(children_per_node(budget), self.count)
        limits = np.array([shape.depth for shape in shapes])
        best = _Best(len(shapes), budget)
        best.add(np.arange(len(shapes)), *self._children(np.arange(len(shapes)), look))
        for depth in range(1, limits.max()):
            level = best.level(depth, width)
            level[limits <= depth] = NONE
            for nodes in level.T:
                places = np.flatnonzero(nodes != NONE)
                places = places[self._score(nodes[places]) > best.bar[places]]
                if len(places):
                    yield nodes[places]
                    best.add(places, *self._children(self.row[nodes[places]], look))
        return self._drawn(best.nodes)

    def _children(self, rows: Nodes, look: int) -> tuple[Nodes, NDArray[np.float64], Nodes]:
        """Numbers, scores and depths of the best children of some rows, each `[n, look]`."""
        numbers = rows[:, None] * self.count + np.arange(look)
        return numbers, self.scores[rows, :look], np.repeat(self.depth[rows, None] + 1, look, 1)

    def _score(self, nodes: Nodes) -> NDArray[np.float64]:
        return self.scores[np.divmod(nodes, self.count)]

    def _drawn(self, trees: Nodes) -> list[Proposal]:
        """Trees of some nodes each, `[R, n]`, filled up with `NONE`."""
        there = trees != NONE
        rows, ranks = np.divmod(np.where(there, trees, 0), self.count)
        above = self.node[rows]  # number of each one's parent
        same = (above[:, :, None] == trees[:, None]) & (above != NONE)[:, :, None]
        parents = torch.from_numpy(np.where(same.any(2), same.argmax(2), -1))
        facts = (self.tokens, self.logprobs, self.own)
        tokens, logprobs, own = (torch.from_numpy(fact[rows, ranks]) for fact in facts)
        columns = zip(tokens, parents, logprobs, own, there.sum(1).tolist(), strict=True)
        return [Proposal(t[:n], up[:n], p[:n], scores=s[:n]) for t, up, p, s, n in columns]


class _Best:
    """The best nodes so far of a tree at every place, best first.

    Args:
        places: How many trees.
        budget: Most nodes of each.
    """

    def __init__(self, places: int, budget: int) -> None:
        self.nodes = np.full((places, budget), NONE)
        self.scores = np.full((places, budget), -np.inf)
        self.depths = np.zeros((places, budget), dtype=np.int64)

    @property
    def bar(self) -> NDArray[np.float64]:
        """What a node must be better than to have children in the tree `[R]`."""
        return self.scores[:, -1]

    def level(self, depth: int, width: int) -> Nodes:
        """The best nodes of a depth that may have children in the tree `[R, width]`."""
        found = (self.depths == depth) & (self.scores > self.bar[:, None])
        order = np.argsort(~found, axis=1, kind="stable")[:, :width]
        return np.where(
            np.take_along_axis(found, order, 1), np.take_along_axis(self.nodes, order, 1), NONE
        )

    def add(self, places: Nodes, nodes: Nodes, scores: NDArray[np.float64], depths: Nodes) -> None:
        """Takes in nodes that are as deep as any of some places' trees, `[n, k]` each."""
        columns = zip((self.nodes, self.scores, self.depths), (nodes, scores, depths), strict=True)
        joined = [np.concatenate([old[places], new], axis=1) for old, new in columns]
        # Of equal ones those that are there come first, which are no deeper.
        order = np.argsort(-joined[1], axis=1, kind="stable")[:, : self.nodes.shape[1]]
        for kept, some in zip((self.nodes, self.scores, self.depths), joined, strict=True):
            kept[places] = np.take_along_axis(some, order, 1)
