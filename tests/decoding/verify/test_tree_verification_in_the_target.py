"""A tree costs one target pass and gives what separate chains give, before and after commit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from draftgym.decoding.arms import Arm
from draftgym.decoding.decoder import PlainPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape
from draftgym.decoding.model.compact.cache import KVCache
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import verify_batch
from draftgym.decoding.session import Session
from draftgym.decoding.verify.base import Verdict
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal

PROMPT = torch.tensor([11, 4, 27, 33, 8, 15])
# Two roots; the path 1, 3, 5 is accepted in these tests, so its rows are not contiguous.
TREE = Proposal(
    tokens=torch.tensor([20, 21, 30, 31, 32, 40, 41]),
    parents=torch.tensor([-1, -1, 0, 1, 1, 3, 0]),
    logprobs=torch.zeros(7),
)
PATH = [1, 3, 5]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def path_to(proposal: Proposal, node: int) -> list[int]:
    path = [node]
    while (parent := int(proposal.parents[path[0]])) >= 0:
        path.insert(0, parent)
    return path


def session_of(target: Target, drafters: dict[str, Drafter], capacity: int = 40) -> Session:
    session = Session(target, PROMPT, GreedyRule(), 10, drafters, capacity)
    session.prefill()
    return session


def decode_one_by_one(target: Target, tokens: Tensor) -> tuple[KVCache, Tensor]:
    """Cache and last logits after feeding tokens one at a time."""
    cache = target.decoder.new_cache(40)
    for token in tokens:
        output = target.decoder.forward([NewRows(cache, token[None])])[0]
        cache.keep(1)
    return cache, output.logits[-1]


def test_every_tree_node_gets_the_logits_of_its_own_chain(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    session = session_of(target, drafters)
    rows = session.verification_rows(TREE)
    output = target.decoder.forward([rows], session.tap_layers)[0]
    for node in range(len(TREE)):
        path = path_to(TREE, node)
        chain = torch.cat([session.tokens[-1:], TREE.tokens[path]])
        single = target.decoder.forward([NewRows(session.cache, chain)], session.tap_layers)[0]
        for name in ("logits", "hidden", "taps"):
            torch.testing.assert_close(
                getattr(output, name)[node + 1], getattr(single, name)[-1], **CLOSE
            )


def test_a_tree_may_be_run_level_by_level(target: Target, drafters: dict[str, Drafter]) -> None:
    """A drafter that is a small language model grows its trees this way."""
    session = session_of(target, drafters)
    whole = target.decoder.forward([session.verification_rows(TREE)])[0]
    rows, mask = session.verification_rows(TREE), TREE.ancestor_mask()
    assert rows.positions is not None
    depths = torch.cat([torch.tensor([0]), TREE.depths()])
    written = torch.empty(0, dtype=torch.long)
    for depth in range(int(depths.max()) + 1):
        level = (depths == depth).nonzero()[:, 0]
        written = torch.cat([written, level])
        seen = mask[level][:, written]
        step = NewRows(session.cache, rows.tokens[level], rows.positions[level], seen)
        output = target.decoder.forward([step])[0]
        session.cache.keep(len(level))
        torch.testing.assert_close(output.logits, whole.logits[level], **CLOSE)


def test_an_accepted_branch_leaves_the_cache_of_plain_decoding(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    session = session_of(target, drafters)
    anchor = session.tokens[-1:].clone()
    output = target.decoder.forward([session.verification_rows(TREE)], session.tap_layers)[0]
    committed = session.commit(TREE, Verdict(PATH, 50, []), output)
    assert committed == [21, 31, 40, 50]
    seen = torch.cat([PROMPT, anchor, TREE.tokens[PATH]])
    cache, logits = decode_one_by_one(target, seen)
    assert session.cache.length == cache.length == len(seen)
    for name in ("keys", "values"):
        ours, plain = getattr(session.cache, name), getattr(cache, name)
        torch.testing.assert_close(ours[:, :, : len(seen)], plain[:, :, : len(seen)], **CLOSE)
    torch.testing.assert_close(session.last_logits, logits, **CLOSE)
    next_row = torch.tensor([50])
    after = target.decoder.forward([NewRows(session.cache, next_row)])[0].logits
    plain_after = target.decoder.forward([NewRows(cache, next_row)])[0].logits
    torch.testing.assert_close(after, plain_after, **CLOSE)


def test_taps_of_an_accepted_branch_are_those_of_plain_decoding(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    session = session_of(target, drafters)
    output = target.decoder.forward([session.verification_rows(TREE)], session.tap_layers)[0]
    session.commit(TREE, Verdict(PATH, 50, []), output)
    text = session.tokens[:-1]
    whole = target.decoder.forward(
        [NewRows(target.decoder.new_cache(40), text)], session.tap_layers
    )[0]
    for column, layer in enumerate(session.tap_layers):
        torch.testing.assert_close(
            session.features([layer], 0, len(text)), whole.taps[:, column], **CLOSE
        )


def test_a_refused_tree_leaves_no_trace(target: Target, drafters: dict[str, Drafter]) -> None:
    tried, plain = session_of(target, drafters), session_of(target, drafters)
    for proposal in (TREE, Proposal.empty()):
        output = target.decoder.forward([tried.verification_rows(proposal)], tried.tap_layers)[0]
        tried.commit(proposal, Verdict([], 50, []), output)
    for _ in range(2):
        rows = plain.verification_rows(Proposal.empty())
        output = target.decoder.forward([rows], plain.tap_layers)[0]
        plain.commit(Proposal.empty(), Verdict([], 50, []), output)
    assert tried.tokens.tolist() == plain.tokens.tolist()
    torch.testing.assert_close(tried.last_logits, plain.last_logits, **CLOSE)


def test_rolling_back_and_rewriting_equals_never_having_written(target: Target) -> None:
    long, _ = decode_one_by_one(target, torch.cat([PROMPT, torch.tensor([50, 51, 52])]))
    long.roll_back(len(PROMPT))
    short, _ = decode_one_by_one(target, PROMPT)
    other = torch.tensor([7, 3])
    ours = target.decoder.forward([NewRows(long, other)])[0].logits
    expected = target.decoder.forward([NewRows(short, other)])[0].logits
    torch.testing.assert_close(ours, expected, **CLOSE)
    with pytest.raises(ValueError, match="roll back"):
        short.roll_back(len(PROMPT) + 1)


class TreeDrafter(Drafter):
    """Proposes random trees into which the target's own continuation is sometimes woven.

    Args:
        truth: Prompt and plain continuation.
        seed: Seed of the trees.
    """

    name = "trees"
    max_draft_length = 4
    max_tree_nodes = 12

    def __init__(self, truth: list[int], seed: int) -> None:
        self.truth = truth
        self.generator = torch.Generator().manual_seed(seed)

    fingerprint = "made for a test"

    def new_state(self, capacity: int) -> None:
        """Nothing to remember."""

    def catch_up(self, state: None, context: DraftContext, full: bool = False) -> int:
        """Nothing to catch up with."""
        return 0

    def propose(self, state: None, context: DraftContext, shape: DraftShape) -> Proposal:
        """A random tree of up to 12 nodes, no deeper than `shape`."""
        written = len(context.tokens)
        tokens: list[int] = []
        parents: list[int] = []
        true_nodes, depths = [-1], {-1: 0}
        for node in range(self._roll(12) + 1):
            depth = depths[true_nodes[-1]]
            grow_truth = self._roll(3) > 0 and depth < shape.depth
            if grow_truth and written + depth < len(self.truth):
                parents.append(true_nodes[-1])
                tokens.append(self.truth[written + depth])
                true_nodes.append(node)
            else:
                shallow = [n for n, d in depths.items() if d < shape.depth]
                parents.append(shallow[self._roll(len(shallow))])
                tokens.append(self._roll(60))
            depths[node] = depths[parents[-1]] + 1
        return Proposal(torch.tensor(tokens), torch.tensor(parents), torch.zeros(len(tokens)))

    def _roll(self, sides: int) -> int:
        return int(torch.randint(sides, (1,), generator=self.generator))


class TreePolicy(PlainPolicy):
    """Always drafts trees."""

    arms = (Arm("trees", 4, 12),)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_random_trees_never_change_text(target: Target, temperature: float, seed: int) -> None:
    plain = SpeculativeDecoder(target, {}, PlainPolicy())
    expected = plain.generate(PROMPT, 40, temperature, seed).tokens
    drafter = TreeDrafter(PROMPT.tolist() + expected, seed)
    result = SpeculativeDecoder(target, {"trees": drafter}, TreePolicy()).generate(
        PROMPT, 40, temperature, seed
    )
    assert result.tokens == expected
    accepted = [item.record.accepted for item in result.rounds]
    refused = [len(item.record.drafted) - item.record.accepted for item in result.rounds]
    assert max(accepted) > 1  # a test of refusals alone would not touch compaction
    assert max(refused) > 1


def test_trees_and_chains_are_verified_in_one_pass(
    target: Target, drafters: dict[str, Drafter]
) -> None:
    chain = Proposal.chain(torch.tensor([9, 8, 7]), torch.zeros(3))
    proposals = [TREE, chain, Proposal.empty()]
    together = verify_batch([session_of(target, drafters) for _ in proposals], proposals)
    for proposal, (output, verdict) in zip(proposals, together, strict=True):
        alone, verdict_alone = verify_batch([session_of(target, drafters)], [proposal])[0]
        torch.testing.assert_close(output.logits, alone.logits, **CLOSE)
        assert verdict.path == verdict_alone.path
        assert verdict.next_token == verdict_alone.next_token
