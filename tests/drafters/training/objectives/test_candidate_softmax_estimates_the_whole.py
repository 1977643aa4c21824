"""A softmax over sampled candidates stands for the softmax over the whole vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftgym.decoding.model.target import Target
from draftgym.drafters.dflash.unroll import DFlashUnroller
from draftgym.drafters.eagle3.unroll import Eagle3Unroller
from draftgym.drafters.training.objectives.candidates import Candidates, CandidateSampler, draw
from draftgym.drafters.training.objectives.losses import dpace_weights
from draftgym.drafters.training.objectives.unroll import Unroller
from tests.drafters.training.setups import block_outputs, plain
from tests.feature_context import random_batch
from tests.tiny import tiny_dflash, tiny_eagle3

VOCAB = 400
FREQUENT = torch.tensor([3, 17, 250])


def test_present_and_frequent_rows_always_take_part() -> None:
    sampler = CandidateSampler(VOCAB, FREQUENT, others=20)
    present = torch.tensor([[5, -1], [399, 5]])
    found = sampler.draw(present, seed=1)
    rows = found.rows.tolist()
    assert {3, 17, 250, 5, 399} <= set(rows) and rows == sorted(set(rows)) and len(rows) == 25
    assert found.column[found.rows].tolist() == list(range(25))
    assert int((found.column >= 0).sum()) == 25
    sure = found.column[torch.tensor([3, 17, 250, 5, 399])]
    assert (found.bias[sure] == 0).all()
    assert found.bias.exp().sum() == pytest.approx(VOCAB)  # every row is stood for


def test_draws_depend_on_the_seed_alone() -> None:
    sampler = CandidateSampler(VOCAB, FREQUENT, others=20)
    none = torch.tensor([-1])
    assert torch.equal(sampler.draw(none, 4).rows, sampler.draw(none, 4).rows)
    assert not torch.equal(sampler.draw(none, 4).rows, sampler.draw(none, 5).rows)


def test_the_normaliser_is_estimated_without_bias() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))
    sampler = CandidateSampler(VOCAB, FREQUENT, others=40)
    sums = []
    for seed in range(400):
        found = sampler.draw(torch.tensor([9]), seed)
        sums.append(float((logits[found.rows] + found.bias).exp().sum()))
    assert sum(sums) / len(sums) == pytest.approx(float(logits.exp().sum()), rel=0.02)


@pytest.mark.parametrize("others", [0, 10_000])
def test_drawing_everything_is_the_whole_softmax(target: Target, others: int) -> None:
    eagle3, dflash = tiny_eagle3(target), tiny_dflash(target)
    sampler = CandidateSampler(eagle3.network.config.draft_vocab_size, FREQUENT[:1], others)
    pairs: list[tuple[Unroller[Any], Unroller[Any]]] = [
        (
            Eagle3Unroller(eagle3.network, target, sampler=sampler),
            Eagle3Unroller(eagle3.network, target),
        ),
        (
            DFlashUnroller(dflash.network, target, CandidateSampler(61, FREQUENT[:1], others)),
            DFlashUnroller(dflash.network, target),
        ),
    ]
    for some, every in pairs:
        batch = random_batch(target, some.tap_layers, [(5, 9), (3, 14)])
        sampled, whole = plain(some)(batch, seed=0), plain(every)(batch, seed=0)
        assert float(sampled.loss) == pytest.approx(float(whole.loss), rel=1e-5)
        assert [float(x) for x in sampled.agreement] == [float(x) for x in whole.agreement]


def test_validation_sees_the_whole_vocabulary() -> None:
    assert draw(CandidateSampler(VOCAB, FREQUENT, 20), torch.tensor([1]), None) == Candidates()


def test_soft_labels_are_the_targets_distributions(target: Target) -> None:
    drafter = tiny_dflash(target)
    batch = random_batch(target, drafter.tap_layers, [(4, 7)])
    unroller = DFlashUnroller(drafter.network, target)
    total = 0.0
    for anchor in range(4, 10):
        out = block_outputs(unroller, batch, torch.tensor([[anchor]]))[0, 0]
        for k in range(1, 5):
            if anchor + k < 11:
                student = F.linear(out[k - 1], target.decoder.head).log_softmax(-1)
                teacher = F.linear(batch.hidden[0, anchor + k - 1], target.decoder.head).softmax(-1)
                total -= 0.6 ** (k - 1) * float((teacher * student).sum())
    assert float(plain(unroller, 0.6)(batch).loss) == pytest.approx(total / 6, rel=1e-4)


def test_dpace_weights_are_the_gradient_of_the_expected_length() -> None:
    probabilities = torch.rand(3, 6, generator=torch.Generator().manual_seed(2))

    def expected_length(log_smooth: Tensor) -> Tensor:
        return log_smooth.cumsum(-1).exp().sum()

    log_smooth = (0.5 * probabilities + 0.5).log().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_length(log_smooth), log_smooth)
    torch.testing.assert_close(dpace_weights(probabilities), gradient)
