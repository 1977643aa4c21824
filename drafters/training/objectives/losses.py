"""Losses over draft positions: plain, LK, D-PACE and expected length.

Each maps `Scored` positions to one number, the mean over anchors of a sum over the K positions
behind each. q(y_k) is the drafter's probability of the text's k-th token, alpha_k the overlap of
drafter and target there, CE_k the cross-entropy between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from draftgym.drafters.training.objectives.scored import Scored

Loss = Callable[[Scored], Tensor]
Labels = Literal["soft", "hard"]


def position_losses(scored: Scored, labels: Labels) -> Tensor:
    """Cross-entropy `[A, K]` with the target's distribution (soft) or the text's token (hard)."""
    return scored.cross_entropy if labels == "soft" else -scored.log_q


def decay_weights(depth: int, decay: float) -> Tensor:
    """Decay ** k for k = 0 .. depth - 1."""
    return decay ** torch.arange(depth)


def plain_loss(scored: Scored, decay: float, labels: Labels = "soft") -> Tensor:
    """sum_k decay^k CE_k: what EAGLE-3 (arXiv 2503.01840) and DFlash (2602.06036) train with.

    DFlash writes its weights as exp(-k / gamma): decay = exp(-1 / gamma).
    """
    losses = position_losses(scored, labels)
    return (decay_weights(losses.shape[1], decay) * losses).sum() / scored.anchors


def lk_loss(scored: Scored, decay: float, eta: float = 3.0) -> Tensor:
    """Hybrid LK loss (arXiv 2602.23881): sum_k decay^k [lambda_k KL_k + (1 - lambda_k) TV_k].

    TV_k = 1 - alpha_k, and lambda_k = exp(-eta mean(alpha_k)), held fixed, moves from divergence to
    acceptance as the drafter gets better at depth k. (KL and CE differ by a constant.)

    Args:
        scored: Positions.
        decay: Weight of depth k is decay ** k.
        eta: How fast; 3 is the paper's choice.
    """
    kept = scored.kept.float()
    mean = (scored.overlap.detach() * kept).sum(0) / kept.sum(0).clamp(min=1)
    mixture = torch.exp(-eta * mean)
    divergence = scored.cross_entropy - scored.entropy
    losses = mixture * divergence + (1 - mixture) * (kept - scored.overlap)
    return (decay_weights(losses.shape[1], decay) * losses).sum() / scored.anchors


def lk_alpha_loss(scored: Scored, decay: float) -> Tensor:
    """Likelihood form of the LK loss: sum_k decay^k (-log alpha_k)."""
    losses = -(scored.overlap + ~scored.kept).clamp(min=1e-6).log()
    return (decay_weights(losses.shape[1], decay) * losses).sum() / scored.anchors


def dpace_loss(scored: Scored, labels: Labels = "soft") -> Tensor:
    """D-PACE (arXiv 2605.18810): cross-entropy weighted by `dpace_weights`, held fixed."""
    weights = dpace_weights(scored.chance.detach())
    return (weights * position_losses(scored, labels)).sum() / scored.anchors


def dpace_weights(probabilities: Tensor, smoothing: float = 0.5) -> Tensor:
    """D-PACE: position j weighs what the expected accepted length owes to it.

    With s_i = (1 - a) q_i + a, the smoothed chance that position i is right, the expected length is
    the sum over m of prod_{i <= m} s_i; its derivative by log s_j is the sum over m >= j.

    Args:
        probabilities: Drafter's probability q of the text's token `[..., n]`; 0 where it has none.
        smoothing: a; 1 weighs position j by n - j + 1.
    """
    reached = ((1 - smoothing) * probabilities + smoothing).cumprod(-1)
    return reached.flip(-1).cumsum(-1).flip(-1)


def expected_length(chances: Tensor) -> Tensor:
    """Expected accepted tokens `[...]` of drafts whose tokens survive with `chances` `[..., K]`.

    sum_k prod_{i <= k} a_i: token k counts if it and all before it are accepted.
    """
    return chances.cumprod(-1).sum(-1)


def length_loss(scored: Scored, decay: float, ground: float = 0.1) -> Tensor:
    """Expected accepted length itself, with its exact gradient: -sum_k prod_{i <= k} q(y_i).

    On the target's own text, a draft that is drawn from q survives verification at T = 0 with these
    chances. Where q(y) is near 0 the gradient is too, so a little of the plain loss keeps the
    drafter learning there.

    Args:
        scored: Positions.
        decay: Of the plain loss.
        ground: How much of it.
    """
    length = expected_length(scored.chance).sum() / scored.anchors
    return ground * plain_loss(scored, decay) - length
