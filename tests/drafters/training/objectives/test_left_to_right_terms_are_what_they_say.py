"""Left-to-right training: each term is what it says, and is gone when it is switched off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from draftgym.decoding.model.target import Target
from draftgym.drafters.training.data.corpus import Corpus
from draftgym.drafters.training.data.features import target_features
from draftgym.drafters.training.loop.progress import TrainerConfig
from draftgym.drafters.training.loop.trainer import Trainer
from draftgym.drafters.training.objectives.losses import (
    Labels,
    LossSettings,
    Scored,
    dpace_weights,
    expected_length,
    first_errors,
    l2r_loss,
    length_loss,
    make_loss,
    plain_loss,
    position_losses,
)
from draftgym.drafters.training.objectives.objective import RecordedObjective
from draftgym.drafters.training.objectives.unroll import pick_anchors
from tests.drafters.training.setups import greedy_texts, unroller_of

DEPTH, VOCAB = 4, 6

DRAFTS = ["....", "x...", "..x.", ".x.x", "xxxx", "...", ".x", "-...", "..-x", ".x-."]
"""Positions behind anchors: right, wrong (x) or impossible to draft (-); texts may end early."""

BREAKS = [None, 0, 2, 1, 0, None, 1, 0, 2, 1]
"""Where each of them breaks."""


def scored_drafts(drafts: list[str], seed: int = 0) -> Scored:
    """Positions with random scores whose best token is y where the draft is right."""
    generator = torch.Generator().manual_seed(seed)
    cells = [draft.ljust(DEPTH) for draft in drafts]
    real = torch.tensor([[cell != " " for cell in row] for row in cells])
    kept = torch.tensor([[cell in ".x" for cell in row] for row in cells])
    shape = (int(kept.sum()), VOCAB)
    logits, teacher = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    right = torch.tensor([cell == "." for row in cells for cell in row if cell in ".x"])
    label = torch.where(right, logits.argmax(-1), logits.argmin(-1))
    return Scored(logits.requires_grad_(), teacher, label, kept, real)


def gradient(loss: Tensor, scored: Scored) -> Tensor:
    """Of a loss by the drafter's scores `[N, VOCAB]`."""
    (found,) = torch.autograd.grad(loss, scored.logits, retain_graph=True)
    return found


def test_the_first_error_is_found() -> None:
    wanted = [[k == at for k in range(DEPTH)] for at in BREAKS]
    assert first_errors(scored_drafts(DRAFTS)).tolist() == wanted


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("decay", [0.8, 0.5, 1.0])
def test_without_the_other_terms_it_is_the_plain_loss_with_weights_that_sum_to_one(
    decay: float, labels: Labels
) -> None:
    scored = scored_drafts(DRAFTS)
    alone = l2r_loss(scored, decay, labels, focal=0.0, chain=0.0)
    total = sum(decay**k for k in range(DEPTH))
    torch.testing.assert_close(alone, plain_loss(scored, decay, labels) / total)


def test_without_decay_all_positions_weigh_alike() -> None:
    scored = scored_drafts(["....", "x.x."])
    alone = l2r_loss(scored, 1.0, focal=0.0, chain=0.0)
    torch.testing.assert_close(alone, scored.cross_entropy.mean())


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("chain", [0.0, 3.0])
def test_the_focal_term_is_the_cross_entropy_of_the_first_errors(
    labels: Labels, chain: float
) -> None:
    scored = scored_drafts(DRAFTS)
    without = l2r_loss(scored, 0.8, labels, focal=0.0, chain=chain)
    term = l2r_loss(scored, 0.8, labels, focal=0.7, chain=chain) - without
    losses = position_losses(scored, labels)
    broken = [losses[row, at] for row, at in enumerate(BREAKS) if at is not None]
    torch.testing.assert_close(term, 0.7 * torch.stack(broken).sum() / len(DRAFTS))
    reached = gradient(term, scored).abs().amax(-1) > 0
    assert torch.equal(reached, first_errors(scored)[scored.kept])


@pytest.mark.parametrize("chain", [0.0, 3.0])
def test_a_perfect_drafter_has_no_focal_term(chain: float) -> None:
    scored = scored_drafts(["....", "..", "...", "...."])
    assert not first_errors(scored).any()
    losses = [l2r_loss(scored, 0.8, focal=focal, chain=chain) for focal in (0.0, 100.0)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)


@pytest.mark.parametrize("focal", [0.0, 0.7])
def test_the_chain_term_is_the_expected_accepted_share(focal: float) -> None:
    """And pulls at each position as much as the expected length owes to it (D-PACE's weights)."""
    scored = scored_drafts(DRAFTS)
    without = l2r_loss(scored, 0.8, focal=focal, chain=0.0)
    term = l2r_loss(scored, 0.8, focal=focal, chain=3.0) - without
    share = expected_length(scored.chance) / DEPTH
    torch.testing.assert_close(term, -3.0 * share.sum() / len(DRAFTS))
    owed = dpace_weights(scored.chance, smoothing=0.0)[scored.kept][:, None]
    towards = torch.nn.functional.one_hot(scored.label, VOCAB) - scored.logits.softmax(-1)
    wanted = -3.0 * owed * towards / (DEPTH * len(DRAFTS))
    torch.testing.assert_close(gradient(term, scored), wanted)


def test_the_length_objective_is_chain_without_focal_up_to_its_scale() -> None:
    scored = scored_drafts(DRAFTS)
    scale = 0.1 * sum(0.8**k for k in range(DEPTH))
    same = l2r_loss(scored, 0.8, focal=0.0, chain=DEPTH / scale)
    torch.testing.assert_close(scale * same, length_loss(scored, 0.8, ground=0.1))


def test_the_settings_reach_the_loss() -> None:
    scored = scored_drafts(DRAFTS)
    settings = LossSettings(decay=0.6, labels="hard", focal=0.2, chain=5.0)
    wanted = l2r_loss(scored, 0.6, "hard", 0.2, 5.0)
    torch.testing.assert_close(make_loss("l2r", settings)(scored), wanted)


@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_training_lengthens_what_is_accepted(target: Target, tmp_path: Path, kind: str) -> None:
    """On few texts of the target's own, which a drafter can learn by heart."""
    texts = greedy_texts(target, [4] * 4, 16)
    unroller = unroller_of(kind, target)
    unroller.network.requires_grad_(True)
    loss = make_loss("l2r", LossSettings())
    batch = target_features(target, texts, unroller.tap_layers)

    def measured() -> tuple[float, float, float]:
        """Loss, agreement at the first position, and tokens accepted of a draft."""
        with torch.no_grad():
            scored = unroller.score_text(batch, *pick_anchors(batch, None, 0), None)
            accepted = scored.hits.cumprod(-1).sum() / scored.anchors
            return float(loss(scored)), float(scored.agreement()[0]), float(accepted)

    before = measured()
    config = TrainerConfig(updates=60, measure_minutes=0, batch_size=4, lr=5e-3)
    Trainer(RecordedObjective(unroller, loss), target, Corpus(texts, texts), tmp_path, config).run()
    after = measured()
    assert after[0] < before[0]
    assert after[1] > before[1] + 0.1
    assert after[2] > before[2] + 0.3
