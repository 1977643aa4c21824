"""A drafted tree holds the best prefixes that its drafter knows, within its shape."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import draftgym.drafters.autoregressive
from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.base import Candidates
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rules import make_rule
from draftgym.drafters.tree import (
    Frontier,
    best_first_tree,
    frontier_width,
    grow_trees,
    scratch_rows,
)
from tests.feature_context import FeatureContext, HeardRule, random_batch
from tests.tiny import tiny_dflash, tiny_eagle3

Path = tuple[int, ...]
SHAPES = [DraftShape(*shape) for shape in [(1, 1), (1, 3), (3, 3), (3, 7), (4, 12), (4, 30)]]


def paths(proposal: Proposal) -> list[Path]:
    """The token path to every node; fails if a parent comes after its child."""
    found: list[Path] = []
    for token, parent in zip(proposal.tokens.tolist(), proposal.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def best_paths(
    score: Callable[[Path], float], vocab: int, shape: DraftShape
) -> tuple[list[Path], list[float]]:
    """Brute force: every path up to the depth, best first."""
    every = [
        path
        for depth in range(1, shape.depth + 1)
        for path in itertools.product(range(vocab), repeat=depth)
    ]
    ranked = sorted(((score(path), path) for path in every), reverse=True)[: shape.budget]
    return [path for _, path in ranked], [value for value, _ in ranked]


class Table:
    """A drafter that is a table: random logits after every path."""

    def __init__(
        self, seed: int, vocab: int, sharpness: float = 1.0, by_depth: bool = False
    ) -> None:
        self.seed, self.vocab, self.sharpness, self.by_depth = seed, vocab, sharpness, by_depth
        self.steps: list[Frontier] = []
        self._levels: list[list[Path]] = []

    def row(self, path: Path) -> Tensor:
        """Logits after `path`; of its length alone for a block drafter."""
        key = random.Random(f"{self.seed}:{len(path) if self.by_depth else path}").getrandbits(60)
        noise = torch.randn(self.vocab, generator=torch.Generator().manual_seed(key))
        return self.sharpness * noise

    def score(self, path: Path) -> float:
        """Log-probability of a path."""
        steps = [self.row(path[:i]).log_softmax(-1)[token] for i, token in enumerate(path)]
        return float(sum(step.double() for step in steps))

    def candidates(self, prefixes: Sequence[Path], count: int) -> Candidates:
        """Candidates after each of several paths."""
        logits = torch.stack([self.row(path) for path in prefixes])
        return GreedyRule().candidates(logits, [0] * len(prefixes), count)

    def grow(self, shape: DraftShape, width: int | None = None, count: int = 99) -> Proposal:
        """A tree by levels."""
        self.steps, self._levels = [], [[()]]

        def expand(frontier: Frontier) -> Candidates:
            self.steps.append(frontier)
            above = self._levels[-1]
            nodes = zip(frontier.parents.tolist(), frontier.tokens.tolist(), strict=True)
            self._levels.append([(*above[parent], token) for parent, token in nodes])
            return self.candidates(self._levels[-1], count)

        return grow_trees([shape], self.candidates([()], count), expand, width)[0]

    @property
    def expanded(self) -> list[Path]:
        """Paths of the expanded nodes, in the order of their rows."""
        return [path for level in self._levels[1:] for path in level]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_growing_with_any_width_finds_the_best_tree(shape: DraftShape, seed: int) -> None:
    table = Table(seed, vocab=4)
    tree = table.grow(shape, width=10**6)
    expected, scores = best_paths(table.score, 4, shape)
    assert paths(tree) == expected  # best first, so the best of all smaller budgets as well
    depths = tree.depths().tolist()
    totals = [sum(tree.logprobs[tree.ancestor_mask()[i + 1, 1:]]) for i in range(len(tree))]
    torch.testing.assert_close(torch.tensor(totals), torch.tensor(scores))
    assert max(depths) == tree.depth <= shape.depth


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_best_first_finds_the_best_tree(shape: DraftShape, seed: int) -> None:
    table = Table(seed, vocab=4, by_depth=True)
    levels = table.candidates([(0,) * depth for depth in range(shape.depth)], shape.budget)
    expected, _ = best_paths(table.score, 4, shape)
    assert paths(best_first_tree(shape, levels)) == expected


def test_a_tree_that_holds_everything_ends_there() -> None:
    table = Table(0, vocab=2)
    shape = DraftShape(3, 64)
    everything = {path for n in (1, 2, 3) for path in itertools.product(range(2), repeat=n)}
    assert set(paths(table.grow(shape))) == everything
    blocks = Table(0, vocab=2, by_depth=True).candidates([(), (0,), (0, 0)], 64)
    assert set(paths(best_first_tree(shape, blocks))) == everything


def test_a_sure_drafter_draws_a_chain() -> None:
    """One node per level, when nothing beside the best path is worth a node."""
    for by_depth in (False, True):
        table = Table(1, vocab=6, sharpness=60.0, by_depth=by_depth)
        best: Path = ()
        for _ in range(4):
            best = (*best, int(table.row(best).argmax()))
        blocks = table.candidates([best[:depth] for depth in range(4)], 4)
        shape = DraftShape(4, 4)
        tree = best_first_tree(shape, blocks) if by_depth else table.grow(shape)
        assert tree.is_chain and tree.tokens.tolist() == list(best)


@pytest.mark.parametrize("nodes", [1, 2, 4, 7, 16, 40, 64])
@pytest.mark.parametrize("sharpness", [0.3, 2.0, 10.0])
def test_steps_stay_within_their_width_and_stop_when_nothing_can_enter(
    nodes: int, sharpness: float
) -> None:
    table = Table(2, vocab=12, sharpness=sharpness)
    shape = DraftShape(8, nodes)
    tree = table.grow(shape, count=6)
    widths = [len(step.tokens) for step in table.steps]
    assert max(widths, default=0) <= frontier_width(nodes)
    assert sum(widths) <= scratch_rows(8, nodes)
    assert len(tree) <= nodes and tree.depth <= 8
    assert len(widths) <= tree.depth  # no level is run whose parents are not in the tree so far
    if sharpness < 1 and nodes <= 7:
        assert len(widths) < 3  # flat guesses make a bush: its deeper levels are never run


@pytest.mark.parametrize("sure", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_who_is_not_sure_stops_early_and_misses_nothing(shape: DraftShape, sure: float) -> None:
    whole, stopping = Table(4, vocab=4), Table(4, vocab=4)
    everything = whole.grow(shape)
    tree = stopping.grow(replace(shape, sure=sure))
    kept = everything.surer_than(sure)
    assert paths(tree.surer_than(sure)) == paths(kept)
    assert tree.depth == min(everything.depth, kept.depth + 1)
    assert len(stopping.steps) == min(len(whole.steps), kept.depth)


def test_every_row_sees_its_path_and_nothing_else() -> None:
    table = Table(3, vocab=5)
    table.grow(DraftShape(5, 25))
    rows, first = table.expanded, 0
    for step in table.steps:
        assert step.visible.shape == (len(step.tokens), first + len(step.tokens))
        for line in range(len(step.tokens)):
            own = rows[first + line]
            seen = [rows[row] for row in step.visible[line].nonzero()[:, 0].tolist()]
            assert seen == [own[:depth] for depth in range(1, len(own) + 1)]
        first += len(step.tokens)
    assert len(table.steps) > 2


# --- the real drafters ---------------------------------------------------------------------------


def context_of(target: Target, drafter: Drafter, rule: Any, length: int = 14) -> FeatureContext:
    batch = random_batch(target, drafter.tap_layers, [(4, 26)])
    return FeatureContext(batch, 0, length, rule)


def draft(target: Target, drafter: Drafter, shape: DraftShape, rule: Any) -> Proposal:
    context = context_of(target, drafter, rule)
    state = drafter.new_state(64)
    drafter.catch_up(state, context)
    return drafter.propose(state, context, shape)


@pytest.mark.parametrize("rule", ["greedy", "coupled"])
def test_eagle3_scores_a_node_as_if_its_path_were_a_chain(
    target: Target, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = tiny_eagle3(target)
    drafter.network.lm_head.weight.mul_(4)  # sure enough to go deep
    levels: list[list[Path]] = [[()]]
    heard: dict[Path, tuple[list[int], list[float]]] = {}

    def recording(shapes: Any, start: Candidates, expand: Any) -> list[Proposal]:
        def note(found: Candidates) -> Candidates:
            rows = zip(levels[-1], found.tokens.tolist(), found.logprobs.tolist(), strict=True)
            heard.update({path: (tokens, logprobs) for path, tokens, logprobs in rows})
            return found

        def expand_and_note(frontier: Frontier) -> Candidates:
            nodes = zip(frontier.parents.tolist(), frontier.tokens.tolist(), strict=True)
            levels.append([(*levels[-1][parent], token) for parent, token in nodes])
            return note(expand(frontier))

        return grow_trees(shapes, note(start), expand_and_note)

    monkeypatch.setattr(draftgym.drafters.autoregressive, "grow_trees", recording)
    chosen = make_rule(rule, 0.0 if rule == "greedy" else 1.0, 0, target.vocab_size)
    draft(target, drafter, DraftShape(5, 40), chosen)
    assert max(map(len, heard)) >= 3 and len(heard) > 8
    for path, (tokens, logprobs) in heard.items():
        text = torch.zeros(40, dtype=torch.long)
        text[14 : 14 + len(path)] = torch.tensor(path, dtype=torch.long)
        forced = HeardRule(text)
        draft(target, drafter, DraftShape(len(path) + 1), forced)
        chain = forced.heard[len(path)].log_softmax(-1)[tokens]
        torch.testing.assert_close(torch.tensor(logprobs), chain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [DraftShape(1, 5), DraftShape(4, 4), DraftShape(4, 40)], ids=str)
@pytest.mark.parametrize("rule", ["greedy", "coupled", "rejection"])
@pytest.mark.parametrize("name", ["eagle3", "dflash"])
def test_the_best_path_of_a_tree_begins_as_the_chain(
    target: Target, name: str, rule: str, shape: DraftShape
) -> None:
    """The first node is the chain's first token, and no tree is larger than asked for."""
    drafter = tiny_eagle3(target) if name == "eagle3" else tiny_dflash(target)
    chosen = make_rule(rule, 0.0 if rule == "greedy" else 0.9, 2, target.vocab_size)
    tree = draft(target, drafter, shape, chosen)
    assert 1 <= len(tree) <= shape.budget and tree.depth <= shape.depth
    assert len(set(paths(tree))) == len(tree) and tree.draft_probs is None
    if rule != "rejection":  # its chains are sampled
        chain = draft(target, drafter, DraftShape(shape.depth), chosen)
        assert tree.tokens[0] == chain.tokens[0]
        torch.testing.assert_close(tree.logprobs[0], chain.logprobs[0])


@pytest.mark.parametrize("rule", ["greedy", "coupled"])
def test_dflash_draws_the_best_prefixes_of_its_block(target: Target, rule: str) -> None:
    drafter, shape = tiny_dflash(target), DraftShape(3, 20)
    chosen = make_rule(rule, 0.0 if rule == "greedy" else 1.0, 0, target.vocab_size)
    forced = HeardRule(torch.zeros(40, dtype=torch.long))
    draft(target, drafter, DraftShape(3), forced)
    ranking = chosen.ranking(torch.stack(forced.heard), range(14, 17)).log_softmax(-1).double()

    def score(path: Path) -> float:
        return float(sum(ranking[depth, token] for depth, token in enumerate(path)))

    every = [
        path
        for depth in (1, 2, 3)
        for path in itertools.product(*(ranking[d].topk(20).indices.tolist() for d in range(depth)))
    ]
    expected = sorted(every, key=score, reverse=True)[:20]
    assert paths(draft(target, drafter, shape, chosen)) == expected
