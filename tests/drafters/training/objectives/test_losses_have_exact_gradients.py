"""Every objective's gradient is what finite differences of it say, on positions small enough."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from draftgym.drafters.training.objectives.losses import (
    Scored,
    dpace_loss,
    dpace_weights,
    expected_length,
    l2r_loss,
    length_loss,
    lk_alpha_loss,
    lk_loss,
    plain_loss,
)
from draftgym.drafters.training.objectives.paths import VerifiedPaths
from draftgym.drafters.training.objectives.vsd import VSDSettings, judge, maximisation_loss

ANCHORS, PATHS, DEPTH, VOCAB = 3, 2, 3, 5
Function = Callable[[Tensor], Tensor]


def positions(logits: Tensor, seed: int = 0, rows: int = ANCHORS) -> Scored:
    """Positions with given drafter scores `[N, VOCAB]`; one is missing, one cannot be drafted."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.ones(rows, DEPTH, dtype=torch.bool)
    real[-1, -1] = False
    kept = real.clone()
    kept[0, 1] = False
    count = int(kept.sum())
    teacher = 2 * torch.randn(count, VOCAB, generator=generator, dtype=torch.float64)
    label = torch.randint(VOCAB, (count,), generator=generator)
    return Scored(logits, teacher, label, kept, real)


def start(rows: int = ANCHORS) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(rows * DEPTH - 2, VOCAB, generator=generator, dtype=torch.float64)


def finite_differences(function: Function, at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar function in every entry."""
    gradient = torch.zeros_like(at)
    for index in range(at.numel()):
        nudge = torch.zeros_like(at).flatten()
        nudge[index] = step
        up, down = at + nudge.view_as(at), at - nudge.view_as(at)
        gradient.view(-1)[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def held(loss: Callable[[Scored, Scored], Tensor]) -> Function:
    """A loss of (positions, positions at the start): what it holds fixed is the start's."""
    first = positions(start())
    return lambda logits: loss(positions(logits), first)


def dpace_by_hand(scored: Scored, first: Scored) -> Tensor:
    return (dpace_weights(first.chance) * scored.cross_entropy).sum() / scored.anchors


def lk_by_hand(scored: Scored, first: Scored) -> Tensor:
    kept = first.kept.double()
    share = torch.exp(-3.0 * (first.overlap * kept).sum(0) / kept.sum(0))
    divergence = scored.cross_entropy - scored.entropy
    losses = share * divergence + (1 - share) * (kept - scored.overlap)
    return (0.8 ** torch.arange(DEPTH) * losses).sum() / scored.anchors


EXACT: dict[str, tuple[Callable[[Scored], Tensor], Function]] = {
    name: (loss, lambda logits, loss=loss: loss(positions(logits)))
    for name, loss in {
        "plain": partial(plain_loss, decay=0.8),
        "hard": partial(plain_loss, decay=0.7, labels="hard"),
        "lk-alpha": partial(lk_alpha_loss, decay=0.8),
        "length": partial(length_loss, decay=0.8, ground=0.1),
        "l2r": partial(l2r_loss, decay=0.8),
        "l2r-hard": partial(l2r_loss, decay=1.0, labels="hard", focal=2.0, chain=1.0),
    }.items()
} | {
    "lk": (partial(lk_loss, decay=0.8), held(lk_by_hand)),
    "dpace": (dpace_loss, held(dpace_by_hand)),
}


@pytest.mark.parametrize("name", EXACT)
def test_gradients_are_finite_differences(name: str) -> None:
    """Weights that a loss holds fixed are held at the start here too."""
    loss, by_hand = EXACT[name]
    logits = start().requires_grad_()
    value = loss(positions(logits))
    assert float(value.detach()) == pytest.approx(float(by_hand(start())))
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, finite_differences(by_hand, start()), rtol=1e-6, atol=1e-8)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("settings", [VSDSettings(confidence=0.3), VSDSettings(likelihood=0.0)])
def test_the_m_step_has_the_gradient_of_its_terms(settings: VSDSettings) -> None:
    """The E-step and the confidence are held fixed; the rest moves with the drafter."""
    rows = ANCHORS * PATHS
    generator = torch.Generator().manual_seed(3)
    shape = (ANCHORS, PATHS, DEPTH)
    real = positions(start(rows), rows=rows).real.view(shape)
    log_p, log_q = (-torch.rand(shape, generator=generator) for _ in range(2))
    tokens = torch.zeros(shape, dtype=torch.long)
    paths = VerifiedPaths(tokens, real, log_q * real, log_p * real, real, torch.zeros(*shape, 2))
    sure, judgement = positions(start(rows), rows=rows).confidence, judge(paths, settings)

    def loss(logits: Tensor) -> Tensor:
        return maximisation_loss(positions(logits, rows=rows), paths, judgement, settings).mean()

    def by_hand(logits: Tensor) -> Tensor:
        scored = positions(logits, rows=rows)
        scored.__dict__["confidence"] = sure
        return maximisation_loss(scored, paths, judgement, settings).mean()

    logits = start(rows).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    torch.testing.assert_close(
        gradient, finite_differences(by_hand, start(rows)), rtol=1e-6, atol=1e-8
    )
    assert gradient.abs().max() > 1e-3


def test_expected_length_is_the_mean_of_simulated_drafts() -> None:
    chances = torch.tensor([0.9, 0.5, 0.7, 0.2])
    coins = torch.rand(200_000, 4, generator=torch.Generator().manual_seed(0)) < chances
    lengths = coins.cumprod(-1).sum(-1).float()
    assert float(expected_length(chances)) == pytest.approx(float(lengths.mean()), rel=5e-3)


def test_length_loss_alone_is_minus_the_expected_length() -> None:
    scored = positions(start())
    wanted = -expected_length(scored.chance).sum() / ANCHORS
    assert float(length_loss(scored, 0.8, ground=0.0)) == pytest.approx(float(wanted))
    assert scored.chance[0, 1] == 0  # its token cannot be drafted, so nothing behind it counts
