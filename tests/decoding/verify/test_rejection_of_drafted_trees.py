"""Trees that drafters draw under rejection keep the target's law, checked for all ways of coins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.verify.base import Candidates, VerificationRule
from draftgym.decoding.verify.proposal import Proposal, grafted
from draftgym.decoding.verify.rejection import Coins, RejectionRule
from draftgym.drafters.tree import Frontier, best_first_tree, grow_trees
from tests.decoding.verify.test_verification_is_lossless import (
    TEMPERATURE,
    VOCAB,
    Table,
    Tokens,
    assert_law_is_the_targets,
    committed,
    draft_chain,
    enumerate_coins,
)


def grown(rule: VerificationRule, drafter: Table, shape: DraftShape) -> Proposal:
    """What an autoregressive drafter draws after the empty prefix."""
    levels: list[list[Tokens]] = [[()]]

    def score(prefixes: list[Tokens]) -> Candidates:
        logits = torch.stack([drafter.logits(prefix) for prefix in prefixes])
        return rule.candidates(logits, [len(prefixes[0])] * len(prefixes), VOCAB)

    def expand(frontier: Frontier) -> Candidates:
        nodes = zip(frontier.parents.tolist(), frontier.tokens.tolist(), strict=True)
        levels.append([(*levels[-1][parent], token) for parent, token in nodes])
        return score(levels[-1])

    return grow_trees([shape], score([()]), expand)[0]


def best_first(rule: VerificationRule, drafter: Table, shape: DraftShape) -> Proposal:
    """What a block drafter draws after the empty prefix."""
    logits = torch.stack([drafter.logits((0,) * depth) for depth in range(shape.depth)])
    return best_first_tree(shape, rule.candidates(logits, range(shape.depth), shape.budget))


@pytest.mark.parametrize("draw", [grown, best_first])
@pytest.mark.parametrize("shape", [DraftShape(1, 3), DraftShape(2, 4), DraftShape(2, 7)], ids=str)
@pytest.mark.parametrize("never", [[], [1]])
def test_drafted_trees_keep_the_targets_law(
    draw: Callable[[VerificationRule, Table, DraftShape], Proposal],
    shape: DraftShape,
    never: list[int],
) -> None:
    target, drafter = Table(11, never=never), Table(12)
    depths: set[int] = set()

    def run(coins: Coins) -> Tokens:
        rule = RejectionRule(TEMPERATURE, 0, VOCAB, coins)
        proposal = draw(rule, drafter, shape)
        assert proposal.draft_probs is None and not proposal.is_chain
        verdict = rule.verify(proposal, target.rows((), proposal), -1)
        depths.add(len(verdict.path))
        return committed(proposal, verdict)

    assert_law_is_the_targets(enumerate_coins(run), target)
    assert depths == set(range(shape.depth + 1))


def test_a_graft_of_a_sampled_chain_keeps_the_targets_law() -> None:
    target, drafter = Table(11), Table(12)
    copied = Proposal.chain(torch.tensor([1, 0]), torch.zeros(2))
    shared: set[int] = set()

    def run(coins: Coins) -> Tokens:
        rule = RejectionRule(TEMPERATURE, 0, VOCAB, coins)
        proposal = grafted([draft_chain(rule, drafter, (), 2), copied])
        shared.add(4 - len(proposal))
        verdict = rule.verify(proposal, target.rows((), proposal), -1)
        return committed(proposal, verdict)

    assert_law_is_the_targets(enumerate_coins(run), target)
    assert shared == {0, 1, 2}, "chains that part, and that share one token or both"


@pytest.mark.parametrize("least", [0.1, 0.3, 0.9])
def test_a_sampled_chain_may_be_cut_by_its_own_probability(least: float) -> None:
    target, drafter = Table(11), Table(12)
    lengths: set[int] = set()

    def run(coins: Coins) -> Tokens:
        rule = RejectionRule(TEMPERATURE, 0, VOCAB, coins)
        proposal = draft_chain(rule, drafter, (), 2).surer_than(least)
        lengths.add(len(proposal))
        verdict = rule.verify(proposal, target.rows((), proposal), -1)
        return committed(proposal, verdict)

    assert_law_is_the_targets(enumerate_coins(run), target)
    assert len(lengths) > 1 or least == 0.9


def test_siblings_are_tried_from_the_likeliest_on() -> None:
    rule, drafter = RejectionRule(TEMPERATURE, 0, VOCAB), Table(12)
    tree = grown(rule, drafter, DraftShape(1, 3))
    assert tree.tokens.tolist() == drafter.logits(()).topk(3).indices.tolist()
