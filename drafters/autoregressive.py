"""What drafters share that write one token, or one level of a tree, per step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftgym.decoding.drafting import DraftContext, DraftedToken, DraftShape, Stop
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.device import read_together, upload
from draftgym.decoding.verify.base import Candidates, VerificationRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.positions.batched import BatchDrafter, Shapes
from draftgym.drafters.positions.forest import Forest, Step
from draftgym.drafters.positions.paths import Paths
from draftgym.drafters.tree import Frontier, children_per_node, grow_trees, scratch_rows


class AutoregressiveDrafter(BatchDrafter):
    """Runs the newest position, then what was drafted; all places take a step together."""

    goes_on = True

    @abstractmethod
    def first_step(
        self, cache: KVCache, context: DraftContext, lengths: Tensor, visible: Tensor | Paths | None
    ) -> tuple[Tensor, Tensor]:
        """Runs the newest committed row of each place, which lies behind the cache afterwards.

        Args:
            cache: The cache.
            context: The text.
            lengths: Committed tokens at each place `[R]`, on the host.
            visible: As `BatchDrafter.own_rows` gives it, or paths.

        Returns:
            Logits of the token behind each anchor `[R, Vd]`, and what the next step reads of each
            row beside its token `[R, ...]`.
        """

    @abstractmethod
    def next_step(
        self,
        cache: KVCache,
        tokens: Tensor,
        carried: Tensor,
        positions: Tensor,
        visible: Tensor | Paths | None,
    ) -> tuple[Tensor, Tensor]:
        """Runs drafted rows, which lie behind the cache afterwards.

        Args:
            cache: The cache.
            tokens: Their token ids `[w]`.
            carried: What the step before gave of their parents `[w, ...]`.
            positions: Where they stand in the text `[w]`.
            visible: As `NewRows.visible`, or paths; None where the only row sees everything.

        Returns:
            As `first_step`, of these rows.
        """

    def draft_at(
        self, cache: KVCache, context: DraftContext, lengths: Tensor, shapes: Shapes
    ) -> list[list[Proposal]]:
        """Chains to the longest depth that is asked for, trees level by level."""
        sight = self.own_rows(cache, lengths, 1)
        logits, carried = self.first_step(cache, context, lengths, sight)
        cache.keep(len(lengths))
        visible = None if sight is None else sight.mask(cache.length)
        steps = _Steps(self, cache, context.rule, lengths, visible, logits, carried)
        if sight is not None and context.rule.picks_best:
            return _in_forest(steps, sight, shapes)
        longest = max((s.depth for some in shapes for s in some if not s.is_tree), default=0)
        stops = context.rule.picks_best and any(s.may_stop for some in shapes for s in some)
        stop = shapes[0][0].stop if len(shapes) == 1 else None
        chains = steps.chains(longest, stop) if longest and not stops else []
        columns = []
        for column in zip(*shapes, strict=True):
            if column[0].is_tree:
                columns.append(steps.trees(column))
            elif stops:  # whoever looks at scores after every step draws a tree of one path
                columns.append(steps.trees(column, children=1))
            else:
                columns.append([_cut(*one) for one in zip(chains, column, strict=True)])
        return [list(row) for row in zip(*columns, strict=True)]

    def rows_for(self, shapes: Sequence[DraftShape]) -> int:
        """All columns together, whatever they share; see `BatchDrafter.rows_for`."""
        chain = max((shape.depth for shape in shapes if not shape.is_tree), default=1)
        trees = (scratch_rows(shape.depth, shape.budget) for shape in shapes if shape.is_tree)
        return chain + sum(trees)


def _in_forest(steps: _Steps, sight: Paths, shapes: Shapes) -> list[list[Proposal]]:
    """Drafts at several places, where a chain takes the best candidates: no row runs twice."""
    drafter, rule, cache, lengths = steps.drafter, steps.rule, steps.cache, steps.lengths
    trees = [shape for shape in shapes[0] if shape.is_tree]
    count = max((children_per_node(shape.budget) for shape in trees), default=1)
    ids, device, carried = drafter.draft_ids, drafter.device, steps.carried

    def run(step: Step) -> Candidates:
        nonlocal carried
        tokens, parents, places, own = (
            upload(one, device) for one in (step.tokens, step.parents, step.places, step.paths)
        )
        behind = lengths[step.places] + step.depths
        seen = Paths(sight.committed, sight.before[places], own)
        at = upload(behind - drafter.lag, device)
        logits, following = drafter.next_step(cache, tokens, carried[parents], at, seen)
        cache.keep(len(tokens))
        carried = torch.cat([carried, following])
        return rule.candidates(logits, behind.tolist(), count, ids)

    forest = Forest(rule.candidates(steps.logits, lengths.tolist(), count, ids), run)
    wanted = [
        forest.trees(column)
        if column[0].is_tree
        else forest.chains([shape.depth for shape in column])
        for column in zip(*shapes, strict=True)
    ]
    return [list(row) for row in zip(*forest.grow(wanted), strict=True)]


def _told(depth: int, logprob: Tensor, logits: Tensor, carried: Tensor) -> DraftedToken:
    """What is known of the newest token of a single chain, read at once."""
    logprobs = logits.float().log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nan_to_num().sum(-1)
    state = carried.float() if carried.is_floating_point() else logprobs[:, :0]
    sure, spread, read = read_together([logprob.float(), entropy, state])
    return DraftedToken(depth, float(sure[0]), float(spread[0]), read[0].numpy())


def _cut(chain: Proposal, shape: DraftShape) -> Proposal:
    """As much of a chain as is asked for."""
    if shape.depth >= len(chain):
        return chain
    return Proposal.chain(chain.tokens[: shape.depth], chain.logprobs[: shape.depth])


@dataclass(frozen=True)
class _Steps:
    """The steps of R places behind their first one, of which every chain and tree begins.

    Attributes:
        drafter: The drafter.
        cache: The committed positions and the R rows of the first step.
        rule: Picks tokens.
        lengths: Committed tokens at each place `[R]`, on the host.
        visible: Who sees whom of what is in the cache, `[R, n]`; None for a single place.
        logits: Of the first step `[R, Vd]`.
        carried: Of the first step `[R, ...]`.
    """

    drafter: AutoregressiveDrafter
    cache: KVCache
    rule: VerificationRule
    lengths: Tensor
    visible: Tensor | None
    logits: Tensor
    carried: Tensor

    def chains(self, depth: int, stop: Stop | None = None) -> list[Proposal]:
        """A chain at every place; with draft distributions where it is the only one.

        Args:
            depth: Most tokens.
            stop: Ends a single chain.
        """
        drafter, lengths, behind = self.drafter, self.lengths, self.cache.length
        logits, carried, visible = self.logits, self.carried, self.visible
        drawn = [self.rule.draft(logits, lengths.tolist(), drafter.draft_ids)]
        first = upload(lengths - drafter.lag, drafter.device)
        for step in range(1, depth):
            if stop is not None and stop(_told(step, drawn[-1][1], logits, carried)):
                break
            if visible is not None:
                own = torch.eye(len(lengths), dtype=torch.bool, device=visible.device)
                visible = torch.cat([visible, own], dim=1)
            newest = drawn[-1][0]
            logits, carried = drafter.next_step(self.cache, newest, carried, first + step, visible)
            self.cache.keep(len(newest))
            drawn.append(self.rule.draft(logits, (lengths + step).tolist(), drafter.draft_ids))
        self.cache.roll_back(behind)
        tokens, logprobs, probs = zip(*drawn, strict=True)
        if len(lengths) == 1:
            sampled = [row for row in probs if row is not None]
            full = torch.cat(sampled) if sampled else None
            return [Proposal.chain(torch.cat(tokens), torch.cat(logprobs), full)]
        rows = zip(torch.stack(tokens, 1), torch.stack(logprobs, 1), strict=True)
        return [Proposal.chain(*row) for row in rows]

    def trees(self, shapes: Sequence[DraftShape], children: int | None = None) -> list[Proposal]:
        """The dynamic tree of every place; a level of all of them is one step and one read.

        Args:
            shapes: Of each place.
            children: How many children of a node are looked at; None takes `children_per_node`.
        """
        ids, behind, carried = self.drafter.draft_ids, self.cache.length, self.carried
        count = children or children_per_node(shapes[0].budget)
        drafter, device = self.drafter, self.drafter.device

        def expand(front: Frontier) -> Candidates:
            nonlocal carried
            visible, lengths = upload(front.visible, device), self.lengths[front.places]
            if self.visible is not None:
                visible = torch.cat([self.visible[upload(front.places, device)], visible], dim=1)
            at = upload(lengths - drafter.lag + front.depth, device)
            parents, tokens = upload(front.parents, device), upload(front.tokens, device)
            logits, carried = drafter.next_step(self.cache, tokens, carried[parents], at, visible)
            self.cache.keep(len(front.tokens))
            return self.rule.candidates(logits, (lengths + front.depth).tolist(), count, ids)

        start = self.rule.candidates(self.logits, self.lengths.tolist(), count, ids)
        drawn = grow_trees(shapes, start, expand)
        self.cache.roll_back(behind)
        return drawn
