"""Draft positions, with what drafter and target think of them, and the losses over them.

Notation: p = target's distribution, q = drafter's, both over the m draft-vocabulary tokens that
take part; A = anchors (or paths), K = draft positions behind each, y = the token that stands there,
alpha_k = overlap of p and q at position k, CE_k = cross-entropy between them. Every loss maps
`Scored` positions to one number: the mean over anchors of a sum over the K positions behind each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

Labels = Literal["soft", "hard"]
ObjectiveName = Literal["plain", "lk", "lk-alpha", "dpace", "length", "l2r", "replay", "vsd"]


@dataclass(frozen=True)
class Scored:
    """N draft positions, spread over anchors and depths. All matrices are 0 where nothing is.

    Attributes:
        logits: The drafter's scores `[N, m]`.
        teacher: The target's scores `[N, m]`.
        label: Column of y among them `[N]`.
        kept: Where those positions are, bool `[A, K]`: real ones whose y can be drafted.
        real: Positions inside the text or path, bool `[A, K]`.
    """

    logits: Tensor
    teacher: Tensor
    label: Tensor
    kept: Tensor
    real: Tensor

    @property
    def anchors(self) -> int:
        """Anchors with something to draft behind them (at least 1, to divide by)."""
        return max(1, int(self.real[:, 0].sum()))

    @cached_property
    def _log_q(self) -> Tensor:
        return self.logits.log_softmax(-1)

    @cached_property
    def _p(self) -> Tensor:
        return self.teacher.softmax(-1)

    @cached_property
    def log_q(self) -> Tensor:
        """Log q(y) `[A, K]`."""
        return self._spread(self._log_q.gather(-1, self.label[:, None])[:, 0])

    @cached_property
    def chance(self) -> Tensor:
        """q(y) `[A, K]`; 0 where y cannot be drafted."""
        return self.log_q.exp() * self.kept

    @cached_property
    def cross_entropy(self) -> Tensor:
        """-sum_v p(v) log q(v) `[A, K]`."""
        return self._spread(-(self._p * self._log_q).sum(-1))

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of p `[A, K]`: what `cross_entropy` is at best."""
        return self._spread(-(self._p * self.teacher.log_softmax(-1)).sum(-1))

    @cached_property
    def overlap(self) -> Tensor:
        """sum_v min(p, q) = 1 - TV(p, q) `[A, K]`: the chance that a token drawn from q is kept."""
        return self._spread(torch.minimum(self._p, self._log_q.exp()).sum(-1))

    @cached_property
    def confidence(self) -> Tensor:
        """max_v q(v) `[A, K]`."""
        return self._spread(self._log_q.max(-1).values.exp())

    @cached_property
    def hits(self) -> Tensor:
        """1 where the drafter's best token is y `[A, K]`."""
        return self._spread((self.logits.argmax(-1) == self.label).float())

    def agreement(self) -> list[Tensor]:
        """Share of hits at each depth, K scalars."""
        return list(self.hits.sum(0) / self.real.sum(0).clamp(min=1))

    def _spread(self, values: Tensor) -> Tensor:
        """Values `[N]` at their places `[A, K]`."""
        return values.new_zeros(self.kept.shape).masked_scatter(self.kept, values)


Loss = Callable[[Scored], Tensor]


def position_losses(scored: Scored, labels: Labels) -> Tensor:
    """Cross-entropy `[A, K]` with the target's distribution (soft) or the text's token (hard)."""
    return scored.cross_entropy if labels == "soft" else -scored.log_q


def decay_weights(losses: Tensor, decay: float) -> Tensor:
    """Decay ** k for the K depths k = 0 .. K - 1 of losses `[A, K]`."""
    return decay ** torch.arange(losses.shape[1], device=losses.device)


def plain_loss(scored: Scored, decay: float, labels: Labels = "soft") -> Tensor:
    """sum_k decay^k CE_k: what EAGLE-3 (arXiv 2503.01840) and DFlash (2602.06036) train with.

    DFlash writes its weights as exp(-k / gamma): decay = exp(-1 / gamma).
    """
    losses = position_losses(scored, labels)
    return (decay_weights(losses, decay) * losses).sum() / scored.anchors


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
    return (decay_weights(losses, decay) * losses).sum() / scored.anchors


def lk_alpha_loss(scored: Scored, decay: float) -> Tensor:
    """Likelihood form of the LK loss: sum_k decay^k (-log alpha_k)."""
    losses = -(scored.overlap + ~scored.kept).clamp(min=1e-6).log()
    return (decay_weights(losses, decay) * losses).sum() / scored.anchors


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


def first_errors(scored: Scored) -> Tensor:
    """Where the accepted prefix ends, bool `[A, K]`: at the first best token that is not y.

    At most one position behind each anchor, and none where the whole draft is right. A token that
    cannot be drafted is an error, too. Among sampled candidates the best token is an estimate.
    """
    missed = scored.real & (scored.hits == 0)
    return missed & (missed.cumsum(-1) == 1)


def l2r_loss(
    scored: Scored, decay: float, labels: Labels = "soft", focal: float = 0.3, chain: float = 40.0
) -> Tensor:
    """Left to right (arXiv 2606.11552): sum_k (w_k + focal [k = j]) CE_k - chain R.

    Verification goes from left to right and ends at the first error, which position-uniform
    training does not know. Three terms tell it: w_k, proportional to decay^k, sum to 1, so that
    earlier positions weigh more; j is the position that breaks the draft (`first_errors`, held
    fixed); R = 1/K sum_k prod_{i <= k} q(y_i) is the expected accepted share of the block.

    The paper's exact form was not at hand. The terms, focal = 0.3, chain = 40 (tuned for blocks of
    16, with decay = exp(-1/10)) and R follow digests of it; that CE is divided by the sum of its
    weights, and the focal term by all anchors, is our reading.

    Args:
        scored: Positions.
        decay: Weight of depth k is proportional to decay ** k; 1 weighs all alike.
        labels: Of both cross-entropies.
        focal: Extra weight of the first error; 0 leaves it out.
        chain: Weight of the expected accepted share; 0 leaves it out.
    """
    losses = position_losses(scored, labels)
    weights = decay_weights(losses, decay)
    weights = weights / weights.sum() + focal * first_errors(scored)
    share = expected_length(scored.chance) / losses.shape[1]
    return ((weights * losses).sum() - chain * share.sum()) / scored.anchors


@dataclass(frozen=True)
class LossSettings:
    """The losses on recorded text."""

    decay: float = 0.8
    """Weight of draft position k is decay ** k (plain, lk, lk-alpha, l2r, and under vsd its
    anchor); 1 weighs all alike."""
    labels: Labels = "soft"
    """Learn the target's distributions (soft) or the text's tokens (hard); plain, dpace, l2r."""
    eta: float = 3.0
    """lk: how fast it moves from divergence to acceptance."""
    ground: float = 0.1
    """length: how much of the plain loss is added."""
    focal: float = 0.3
    """l2r: extra weight of the first position that the drafter gets wrong; 0 leaves it out."""
    chain: float = 40.0
    """l2r: weight of the expected share of the draft that is accepted; 0 leaves it out."""


LOSSES: dict[ObjectiveName, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "plain": (plain_loss, ("decay", "labels")),
    "lk": (lk_loss, ("decay", "eta")),
    "lk-alpha": (lk_alpha_loss, ("decay",)),
    "dpace": (dpace_loss, ("labels",)),
    "length": (length_loss, ("decay", "ground")),
    "l2r": (l2r_loss, ("decay", "labels", "focal", "chain")),
    "replay": (plain_loss, ("decay", "labels")),
    "vsd": (plain_loss, ("decay", "labels")),
}
"""The loss on recorded text of each objective (of vsd: its anchor), and which settings it reads."""


def make_loss(name: ObjectiveName, settings: LossSettings) -> Loss:
    """The loss of that name; `replay` has the plain one, and `vsd` is anchored to it."""
    loss, knobs = LOSSES[name]
    return partial(loss, **{knob: getattr(settings, knob) for knob in knobs})
