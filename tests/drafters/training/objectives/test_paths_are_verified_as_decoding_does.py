"""VSD's E-step drafts what deployment drafts, and its one pass judges as verification does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftgym.decoding.drafting import DraftShape, PrefixView
from draftgym.decoding.model.interface import NewRows
from draftgym.decoding.model.target import Target
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal
from draftgym.decoding.verify.rejection import Coins, RejectionRule
from draftgym.drafters.positions.recorded import RecordedText
from draftgym.drafters.training.objectives import vsd_terms as vsd
from draftgym.drafters.training.objectives.losses import plain_loss
from draftgym.drafters.training.objectives.paths import draw_paths, root_to_leaf, verify_paths
from draftgym.drafters.training.objectives.vsd import VSDObjective, VSDSettings
from tests.drafters.training.test_training_matches_drafting import (
    unroller_of,
)
from tests.feature_context import random_batch

ANCHORS = [6, 9, 15]
KINDS = ["eagle3", "dflash"]
DEPTH = 3
TREE = DraftShape(DEPTH, 6)


class EStep:
    """An E-step on one random text."""

    def __init__(self, kind: str, target: Target) -> None:
        self.unroller = unroller_of(kind, target)
        self.batch = random_batch(target, self.unroller.tap_layers, [(6, 11)])
        self.tokens = self.batch.tokens[0]
        self.rule = RejectionRule(1.0, 5, target.vocab_size)
        taps, layers = self.batch.taps[0], self.unroller.tap_layers
        self.text = RecordedText(self.tokens, 6, taps, layers, self.rule)
        self.drafter = self.unroller.drafter()
        self.found = draw_paths(self.drafter, self.text, ANCHORS, 5, DEPTH, TREE)
        self.verified = verify_paths(target, self.tokens, ANCHORS, self.found)


@pytest.fixture(params=KINDS)
def step(request: pytest.FixtureRequest, target: Target) -> EStep:
    return EStep(request.param, target)


def logits_after(target: Target, tokens: Tensor) -> Tensor:
    """The target's logits `[n, V]` over a whole sequence, by an ordinary pass."""
    cache = target.decoder.new_cache(len(tokens))
    return target.decoder.forward([NewRows(cache, tokens)])[0].logits.clone()


def test_one_pass_says_of_every_path_what_passes_over_each_say(step: EStep, target: Target) -> None:
    verified = step.verified
    for row, anchor in enumerate(ANCHORS):
        for column, path in enumerate(step.found[row]):
            ids, at = torch.tensor(path), slice(len(path))
            logits = logits_after(target, torch.cat([step.tokens[: anchor + 1], ids]))[anchor:-1]
            log_p = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
            torch.testing.assert_close(verified.log_p[row, column, at], log_p, rtol=0, atol=1e-4)
            assert torch.equal(verified.best[row, column, at], logits.argmax(-1) == ids)
            assert verified.real[row, column].sum() == len(path)


def test_every_path_of_the_deployed_tree_takes_part(step: EStep) -> None:
    for row, anchor in enumerate(ANCHORS):
        view = PrefixView(step.text, anchor + 1)
        state = step.drafter.new_state(64)
        step.drafter.catch_up(state, view)
        tree = step.drafter.propose(state, view, TREE)
        known = {path[:stop] for path in step.found[row] for stop in range(1, DEPTH + 1)}
        assert {path for path, _ in root_to_leaf(tree)} <= known


def test_paths_are_distinct_and_none_begins_another(step: EStep) -> None:
    for paths in step.found:
        assert len(paths) > 2
        for path in paths:
            assert not any(other != path and other[: len(path)] == path for other in paths)


def test_chains_are_drawn_from_the_drafter(target: Target) -> None:
    """First tokens of many chains come as often as the drafter's distribution says."""
    step = EStep("eagle3", target)
    text = replace(step.text, rule=RejectionRule(1.0, 1, target.vocab_size))
    first, *drawn = draw_paths(step.drafter, text, ANCHORS[:1] * 601, 1, 1, None)
    ((path, (logprob,)),) = first.items()
    chance = float(torch.tensor(logprob).exp())
    hits = sum(path in paths for paths in drawn) / 600
    assert hits == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 600) ** 0.5)


def test_training_sees_the_probabilities_that_drafting_had(step: EStep, target: Target) -> None:
    """The M-step's log q, before any update, is the E-step's."""
    objective = VSDObjective(step.unroller, target, lambda s: plain_loss(s, 0.8), VSDSettings())
    scored = objective._score(step.batch, torch.tensor(ANCHORS), step.verified, seed=1)
    torch.testing.assert_close(
        scored.log_q.detach().view(step.verified.log_q.shape),
        step.verified.log_q,
        rtol=0,
        atol=2e-4,
    )


def test_at_temperature_zero_the_filter_is_greedy_verification(step: EStep, target: Target) -> None:
    verified, rule = step.verified, GreedyRule()
    chances = vsd.keep_chances(verified.log_p, verified.log_q, verified.best, 0.0)
    lengths = vsd.utility(chances, verified.real)
    for row, anchor in enumerate(ANCHORS):
        for column, path in enumerate(step.found[row]):
            proposal = _chain(path)
            whole = torch.cat([step.tokens[: anchor + 1], proposal.tokens])
            verdict = rule.verify(proposal, logits_after(target, whole)[anchor:], anchor)
            assert int(lengths[row, column]) == len(verdict.path)


class CountingCoins(Coins):
    """Notes with which chance every coin was to fall."""

    def __init__(self) -> None:
        super().__init__(0)
        self.chances: list[float] = []

    def accept(self, mass: float, out_of: float) -> bool:
        """Always accepts."""
        self.chances.append(min(1.0, mass / out_of))
        return True


def test_at_temperature_one_the_chances_are_those_of_rejection_verification(
    step: EStep, target: Target
) -> None:
    """min(1, p / q) of every token, asked of the project's own rule."""
    verified = step.verified
    chances = vsd.keep_chances(verified.log_p, verified.log_q, verified.best, 1.0)
    for row, anchor in enumerate(ANCHORS):
        for column, path in enumerate(step.found[row]):
            coins, at = CountingCoins(), slice(len(path))
            q = verified.log_q[row, column, at].exp()
            full = ((1 - q) / (target.vocab_size - 1))[:, None].repeat(1, target.vocab_size)
            proposal = _chain(path)
            full[torch.arange(len(path)), proposal.tokens] = q
            rule = RejectionRule(1.0, 0, target.vocab_size, coins)
            whole = torch.cat([step.tokens[: anchor + 1], proposal.tokens])
            proposal = replace(proposal, draft_probs=full)
            rule.verify(proposal, logits_after(target, whole)[anchor:], anchor)
            expected = torch.tensor(coins.chances)
            torch.testing.assert_close(chances[row, column, at], expected, rtol=1e-3, atol=1e-4)


def _chain(path: tuple[int, ...]) -> Proposal:
    return Proposal.chain(torch.tensor(path), torch.zeros(len(path)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_repeats_itself_by_its_seed_and_obeys_the_bound(
    target: Target, kind: str
) -> None:
    unroller = unroller_of(kind, target)
    batch = random_batch(target, unroller.tap_layers, [(5, 9), (4, 12)])
    objective = VSDObjective(unroller, target, lambda s: plain_loss(s, 0.8), VSDSettings(anchors=4))
    output = objective(batch, 3)
    assert float(output.loss) == float(objective(batch, 3).loss)
    assert float(output.loss) != float(objective(batch, 4).loss)
    metrics = output.metrics
    assert metrics["bound"] < metrics["log_marginal"] < 0.5
    assert 0 < metrics["expected_length"] < 4
    assert 1 < metrics["effective_paths"] <= metrics["paths"]
