"""EAGLE-3 at many positions of a text: their drafts take each step together.

Chains are rows that see the text up to their anchor and what they have drafted themselves. Trees
grow as coroutines (`draftgym.drafters.tree.tree_growth`), one level of all of them per step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.drafting import DraftContext, DraftShape
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.verification import Candidates
from draftgym.drafters.eagle3.drafter import Eagle3Drafter
from draftgym.drafters.modules import block_attention
from draftgym.drafters.tree import Frontier, children_per_node, tree_growth


@torch.inference_mode()
def eagle3_at_each(
    drafter: Eagle3Drafter,
    context: DraftContext,
    lengths: Sequence[int],
    shapes: Sequence[Sequence[DraftShape]],
) -> list[list[Proposal]]:
    """Proposals of `Eagle3Drafter.propose` at several prefixes of a text.

    Args:
        drafter: The drafter.
        context: The whole text.
        lengths: Committed tokens at each place `[R]`.
        shapes: Per place, what to draft; as many everywhere.
    """
    steps = _Steps(drafter, context, torch.tensor(lengths))
    longest = max((s.depth for some in shapes for s in some if not s.is_tree), default=0)
    chains = _chains(steps, longest)
    columns = []
    for column in zip(*shapes, strict=True):
        if column[0].is_tree:
            columns.append(_trees(steps, column))
        else:
            pairs = zip(chains, column, strict=True)
            columns.append([Proposal.chain(t[: s.depth], p[: s.depth]) for (t, p), s in pairs])
    return [list(row) for row in zip(*columns, strict=True)]


class _Drafted:
    """Keys and values of drafted rows, `[1, R, P, G, D]`."""

    def __init__(self) -> None:
        self.rows: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """Rows per place so far, P."""
        return 0 if self.rows is None else self.rows[0].shape[2]

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in a step's rows; returns all."""
        if self.rows is not None:
            keys, values = torch.cat([self.rows[0], keys], 2), torch.cat([self.rows[1], values], 2)
        self.rows = (keys, values)
        return self.rows

    def only(self, places: Tensor) -> None:
        """Forgets the other places."""
        if self.rows is not None:
            self.rows = (self.rows[0][:, places], self.rows[1][:, places])


class _Steps:
    """Drafting steps of R places that share a text.

    Args:
        drafter: The drafter.
        context: The whole text.
        lengths: Committed tokens at each place `[R]`.
    """

    def __init__(self, drafter: Eagle3Drafter, context: DraftContext, lengths: Tensor) -> None:
        self.drafter, self.network, self.rule = drafter, drafter.network, context.rule
        self.newest = lengths - 2  # what the first step runs: the position before the anchor
        stop = int(lengths.max()) - 1
        known = torch.arange(stop)
        feature = self.network.fuse(context.features(drafter.tap_layers, 0, stop))
        embedding = F.embedding(context.tokens[1 : stop + 1], drafter.embedding)
        pair = self.network.midlayer.pair(embedding, feature)
        attention = self.network.midlayer.self_attn
        self.context = attention.keys_values(pair[None], drafter.rotary.at(known))
        self.visible = (known <= self.newest[:, None])[None]
        self.everyone = torch.arange(len(lengths))
        inputs = (feature[self.newest][:, None], pair[self.newest][:, None])
        self.start = self.run(*inputs, self.everyone, 0)

    def run(
        self,
        feature: Tensor,
        pair: Tensor,
        places: Tensor,
        depth: int,
        drafted: _Drafted | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """The layer's output `[R, Q, d]` of Q rows at each of R places.

        Args:
            feature: `[R, Q, d]`.
            pair: `[R, Q, 2d]`.
            places: Which places `[R]`.
            depth: Steps behind the newest position.
            drafted: Keys and values of the steps so far; this one's are added. None for the step
                over the newest position, whose keys are the text's.
            visible: Who sees whom among all drafted rows `[R, Q, P]`; None: all.
        """
        layer, own = self.network.midlayer, None
        cos_sin = self.drafter.rotary.at((self.newest[places] + depth)[None, :, None])
        if drafted is not None:
            own = drafted.add(*layer.self_attn.keys_values(pair[None], cos_sin))
        queries = layer.self_attn.queries(pair[None], cos_sin)
        if visible is not None:
            visible = visible[None]
        attended = block_attention(queries, self.context, self.visible[:, places], own, visible)
        return layer.finish(feature, attended[0])

    def pair(self, tokens: Tensor, feature: Tensor) -> Tensor:
        """Attention inputs of drafted tokens, whose features are the head's own."""
        embedding = F.embedding(tokens, self.drafter.embedding)
        return self.network.midlayer.pair(embedding, feature)


def _chains(steps: _Steps, depth: int) -> list[tuple[Tensor, Tensor]]:
    """Tokens and log-probabilities `[depth]` of every place."""
    network, drafted, out = steps.network, _Drafted(), steps.start
    drawn: list[tuple[Tensor, Tensor]] = []
    for step in range(depth):
        if step:
            feature = network.carry(out)
            pair = steps.pair(drawn[-1][0][:, None], feature)
            out = steps.run(feature, pair, steps.everyone, step, drafted)
        positions = (steps.newest + step + 2).tolist()
        logits = network.logits(out[:, 0]).float()
        drawn.append(steps.rule.draft(logits, positions, steps.drafter.draft_ids)[:2])
    if not drawn:
        return []
    tokens, logprobs = (torch.stack(column, 1) for column in zip(*drawn, strict=True))
    return list(zip(tokens, logprobs, strict=True))


def _trees(steps: _Steps, shapes: Sequence[DraftShape]) -> list[Proposal]:
    """The tree of every place; a level is one step over all trees that still grow."""
    children = children_per_node(shapes[0].budget)
    start = _candidates(steps, steps.start, steps.everyone, 0, children)
    trees = [_Tree(place, *one) for place, one in enumerate(zip(shapes, start, strict=True))]
    growing, carried, drafted = trees, steps.network.carry(steps.start), _Drafted()
    while still := [index for index, tree in enumerate(growing) if tree.frontier is not None]:
        drafted.only(torch.tensor(still))
        growing, carried = [growing[index] for index in still], carried[still]
        level = _Level([tree.place_next(drafted.count) for tree in growing])
        feature = carried[torch.arange(len(growing))[:, None], level.parents]
        pair = steps.pair(level.tokens, feature)
        places = torch.tensor([tree.place for tree in growing])
        out = steps.run(feature, pair, places, level.depth, drafted, level.visible)
        carried = steps.network.carry(out)
        found = _candidates(steps, out, places, level.depth, children)
        for tree, candidates in zip(growing, found, strict=True):
            tree.go_on(candidates)
    return [tree.proposal for tree in trees]


class _Tree:
    """A tree that is being drawn at one place.

    Attributes:
        frontier: What it wants to be run next; None when it is finished.
        columns: Where its rows lie among the drafted rows of its place, which are padded.
    """

    def __init__(self, place: int, shape: DraftShape, start: Candidates) -> None:
        self.place, self.growth = place, tree_growth(shape, start)
        self.columns: list[int] = []
        self.frontier: Frontier | None = None
        self.proposal = Proposal.empty()
        self._ask(None)

    def place_next(self, column: int) -> tuple[Frontier, list[int]]:
        """The frontier, whose rows will lie from `column` on, and where all rows lie."""
        assert self.frontier is not None
        self.columns += range(column, column + len(self.frontier.tokens))
        return self.frontier, self.columns

    def go_on(self, found: Candidates) -> None:
        """Takes the candidates after the frontier's rows (and after padding)."""
        assert self.frontier is not None
        width = len(self.frontier.tokens)
        columns = (found.tokens, found.logprobs, found.scores)
        self._ask(Candidates(*(column[:width] for column in columns)))

    def _ask(self, found: Candidates | None) -> None:
        try:
            self.frontier = next(self.growth) if found is None else self.growth.send(found)
        except StopIteration as finished:
            self.frontier, self.proposal = None, finished.value


class _Level:
    """Frontiers of R trees, padded to the widest.

    Attributes:
        depth: Their common depth.
        tokens: Token ids `[R, W]`.
        parents: Rows of the parents in the step before `[R, W]`.
        visible: Who sees whom among the drafted rows, these last `[R, W, P]`.
    """

    def __init__(self, fronts: Sequence[tuple[Frontier, list[int]]]) -> None:
        self.depth = fronts[0][0].depth
        widest = max(len(front.tokens) for front, _ in fronts)
        start = fronts[0][1][-len(fronts[0][0].tokens)]
        self.tokens = torch.zeros(len(fronts), widest, dtype=torch.long)
        self.parents = torch.zeros_like(self.tokens)
        self.visible = torch.zeros(len(fronts), widest, start + widest, dtype=torch.bool)
        # Padding sees itself, so that no softmax is empty; nobody sees padding.
        self.visible[:, :, start:] = torch.eye(widest, dtype=torch.bool)
        for row, (front, columns) in enumerate(fronts):
            width = len(front.tokens)
            self.tokens[row, :width] = front.tokens
            self.parents[row, :width] = front.parents
            self.visible[row][:width, columns] = front.visible


def _candidates(
    steps: _Steps, out: Tensor, places: Tensor, depth: int, count: int
) -> list[Candidates]:
    """Candidates after each of the Q rows of every place."""
    logits = steps.network.logits(out).float()
    width = logits.shape[1]
    positions = (steps.newest[places] + depth + 2).repeat_interleave(width).tolist()
    found = steps.rule.candidates(logits.flatten(0, 1), positions, count, steps.drafter.draft_ids)
    parts = [c.split(width) for c in (found.tokens, found.logprobs, found.scores)]
    return [Candidates(*columns) for columns in zip(*parts, strict=True)]
