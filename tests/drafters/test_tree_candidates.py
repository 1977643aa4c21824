"""What a rule offers for trees: its own pick first, then what it would most likely commit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.coupled import CoupledRule
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.rejection import RejectionRule
from draftgym.decoding.verify.rules import make_rule

VOCAB = 40
MAPPED = torch.arange(3, 33)  # target ids of a smaller draft vocabulary
RULES = {
    "greedy": GreedyRule(),
    "coupled": CoupledRule(0.8, 3, VOCAB),
    "rejection": RejectionRule(0.8, 3, VOCAB),
}


def rows_of(vocab: Tensor | None, seed: int = 0, rows: int = 6) -> Tensor:
    width = VOCAB if vocab is None else len(vocab)
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocab", [None, MAPPED], ids=["full", "reduced"])
@pytest.mark.parametrize("positions", [[7] * 6, list(range(6))], ids=["a level", "a block"])
@pytest.mark.parametrize("name", ["greedy", "coupled"])
def test_the_first_candidate_is_what_draft_picks(
    name: str, positions: list[int], vocab: Tensor | None
) -> None:
    rule, logits = RULES[name], rows_of(vocab)
    found = rule.candidates(logits, positions, 5, vocab)
    tokens, logprobs, _ = rule.draft(logits, positions, vocab)
    assert found.tokens[:, 0].tolist() == tokens.tolist()
    torch.testing.assert_close(found.logprobs[:, 0], logprobs)


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_ties_are_broken_as_argmax_breaks_them(count: int) -> None:
    logits = torch.randint(3, (50, 30), generator=torch.Generator().manual_seed(1)).float()
    found = GreedyRule().candidates(logits, [0] * 50, count)
    assert found.tokens[:, 0].tolist() == logits.argmax(-1).tolist()
    assert all(len(set(row)) == count for row in found.tokens.tolist())
    chosen = logits.gather(1, found.tokens)
    torch.testing.assert_close(chosen, logits.topk(count).values)


@pytest.mark.parametrize("vocab", [None, MAPPED], ids=["full", "reduced"])
@pytest.mark.parametrize("name", RULES)
def test_scores_are_log_probabilities_in_falling_order(name: str, vocab: Tensor | None) -> None:
    logits = rows_of(vocab)
    width = logits.shape[1]
    found = RULES[name].candidates(logits, [4] * 6, VOCAB, vocab)
    assert found.tokens.shape == found.scores.shape == found.logprobs.shape == (6, width)
    torch.testing.assert_close(found.scores.exp().sum(-1), torch.ones(6))
    assert bool((found.scores.diff(dim=1) <= 0).all()) and float(found.scores.max()) <= 0
    ids = torch.arange(width) if vocab is None else vocab
    assert set(found.tokens[0].tolist()) == set(ids.tolist())
    draft_rows = found.tokens if vocab is None else found.tokens - 3
    torch.testing.assert_close(found.logprobs, logits.log_softmax(-1).gather(1, draft_rows))


def test_rejection_ranks_by_the_chance_to_be_accepted() -> None:
    logits = rows_of(None)
    found = RULES["rejection"].candidates(logits, [4] * 6, 4)
    torch.testing.assert_close(found.scores, (logits / 0.8).log_softmax(-1).topk(4).values)


def test_coupled_ranks_with_the_noise_of_the_position() -> None:
    rule, logits = CoupledRule(0.8, 3, VOCAB), rows_of(None)
    found = rule.candidates(logits, range(6), 4)
    perturbed = logits + 0.8 * rule.noise.rows(range(6))
    torch.testing.assert_close(found.scores, perturbed.log_softmax(-1).topk(4).values)
    assert found.tokens.tolist() == perturbed.topk(4).indices.tolist()
    assert found.tokens.tolist() != logits.topk(4).indices.tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_coupled_scores_are_chances_if_logits_err_alike(temperature: float) -> None:
    rule, logits = CoupledRule(temperature, 3, VOCAB), rows_of(None)
    found = rule.candidates(logits, range(6), VOCAB)
    uniform = torch.rand(20_000, *logits.shape, generator=torch.Generator().manual_seed(2))
    errors = -(-uniform.log()).log()
    picks = ((logits + errors) / temperature + rule.noise.rows(range(6))).argmax(-1)
    shares = torch.nn.functional.one_hot(picks, VOCAB).float().mean(0).gather(-1, found.tokens)
    torch.testing.assert_close(shares, found.scores.exp(), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["greedy", "coupled", "rejection"])
def test_the_same_logits_always_give_the_same_candidates(name: str) -> None:
    rule: VerificationRule = make_rule(name, 0.0 if name == "greedy" else 1.0, 5, VOCAB)
    first, second = (rule.candidates(rows_of(None), [9] * 6, 4) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.scores, second.scores)


@pytest.mark.parametrize("name", RULES)
def test_a_broken_drafter_is_named(name: str) -> None:
    logits = rows_of(None)
    logits[2, 5] = float("nan")
    with pytest.raises(DraftgymError, match="the drafter produced NaN"):
        RULES[name].candidates(logits, [1] * 6, 3)
