"""The terms of variational drafter training (VSD, arXiv 2602.05774), each a function of its own.

A draft path z = z_1 .. z_K is a latent variable: drawn by the drafter q, judged by the target p.
With kappa(z) the chance that verification keeps all of it, the marginal chance that a path of the
target's is kept is bounded from below by

    log sum_z p(z) kappa(z)  >=  E_q[log kappa(z)] - KL(q || p),                       (`bound`)

with equality where q is the posterior r(z) = p(z) kappa(z) / sum. Training alternates: the E-step
draws paths from the drafter, has the target verify them and weighs them by the posterior; the
M-step raises the weighted likelihood of what was kept.

From the paper: this bound, a path-level utility, an oracle-filtered posterior, and the names
Adaptive Rejection Weighting and Confidence-Aware Regularisation. Its formulas for the utility, the
filter, the weights and the regulariser could not be had; the ones here are our reconstruction.

Notation: A = anchors, P = paths behind each, K = tokens on each. Tokens behind a path's end have
log-probabilities and chances of 0 and are masked by `real`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftgym.drafters.training.objectives.losses import expected_length


def bound(q: Tensor, log_q: Tensor, log_p: Tensor, log_kappa: Tensor) -> Tensor:
    """E_q[log kappa] - KL(q || p) `[...]` (the paper's L_VSD).

    Args:
        q: Weights of the paths under the drafter `[..., P]`: its probabilities if all paths are
            there, equal ones if they were drawn from it.
        log_q: Log-probability of each path under the drafter `[..., P]`.
        log_p: The same under the target.
        log_kappa: Log-chance that all of it is kept.
    """
    return (q * (log_kappa + log_p - log_q)).sum(-1)


def keep_chances(log_p: Tensor, log_q: Tensor, best: Tensor, temperature: float) -> Tensor:
    """Chance a_k that verification keeps token k, given that it kept all before `[..., K]`.

    At temperature 1 that is min(1, p / q) (speculative sampling), at 0 whether the token is the
    target's best.

    Args:
        log_p: Target's log-probability of each token.
        log_q: Drafter's.
        best: Whether it is the target's argmax, bool.
        temperature: 0, or anything above (then read as 1).
    """
    if temperature == 0:
        return best.float()
    return (log_p - log_q).clamp(max=0).exp()


def reach(chances: Tensor, real: Tensor, oracle: bool = True) -> Tensor:
    """How much of each token is left after verification: prod_{i <= k} a_i `[..., K]`.

    This is the oracle filter (our reading): a token counts with the chance that verification keeps
    it and all before it, and a path whose first token is refused counts not at all.

    Args:
        chances: a `[..., K]`.
        real: Tokens that exist, bool.
        oracle: False lets every drafted token count in full (ablation).
    """
    return (chances.cumprod(-1) if oracle else torch.ones_like(chances)) * real


def utility(chances: Tensor, real: Tensor, whole: bool = False) -> Tensor:
    """What a path is worth `[...]`: the tokens of it that verification is expected to keep.

    U(z) = sum_k prod_{i <= k} a_i (our reading of the path-level utility). `whole` takes kappa(z) =
    prod_k a_k instead, the chance to keep all of it (ablation): one bad token at the end then
    spoils a good path.
    """
    if whole:
        return torch.where(real, chances, 1.0).prod(-1)
    return expected_length(chances * real)


def posterior_weights(log_p: Tensor, worth: Tensor) -> Tensor:
    """r(z) over the paths that were found: p(z) U(z) / sum `[..., P]`.

    The paths must be distinct. What the drafter never drafts is missing, so this is the posterior
    given that z was drafted; the more paths, the closer to r itself.

    Args:
        log_p: Log-probability of each path under the target `[..., P]`; -inf where there is none.
        worth: U or kappa of each path `[..., P]`.
    """
    return tempered(log_p + worth.log(), torch.ones_like(worth[..., 0]))


def adaptive_weights(
    log_p: Tensor, worth: Tensor, share: float = 0.5, halvings: int = 20
) -> Tensor:
    """Posterior weights, flattened until enough paths take part `[..., P]`.

    w(z) is proportional to (p(z) U(z))^rho, with the largest rho in [0, 1] for which the effective
    number of paths, 1 / sum w^2, is at least `share` of those that are worth anything. At rho = 1
    it is `posterior_weights`. Our reconstruction of Adaptive Rejection Weighting: paths that are
    rejected weigh nothing, and the rest as much as the data can bear.

    Args:
        log_p: As for `posterior_weights`.
        worth: As there.
        share: Part of the paths that must take part.
        halvings: Steps of the search for rho.
    """
    scores = log_p + worth.log()
    wanted = share * scores.isfinite().sum(-1)
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(halvings):
        middle = (low + high) / 2
        enough = effective_paths(tempered(scores, middle)) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    exact = tempered(scores, torch.ones_like(low))
    enough = effective_paths(exact) >= wanted
    return torch.where(enough[..., None], exact, tempered(scores, low))


def uniform_weights(log_p: Tensor, worth: Tensor) -> Tensor:
    """Equal weights for all paths that exist, whatever they are worth (ablation)."""
    scores = torch.zeros_like(worth).masked_fill(log_p.isneginf(), -torch.inf)
    return tempered(scores, torch.ones_like(worth[..., 0]))


def tempered(scores: Tensor, rho: Tensor) -> Tensor:
    """softmax(rho * scores) over the finite ones; all zeros where there is none `[..., P]`."""
    flat = torch.where(scores.isfinite(), rho[..., None] * scores, -torch.inf)
    some = scores.isfinite().any(-1, keepdim=True)
    return torch.where(some, flat, 0.0).softmax(-1) * some


def effective_paths(weights: Tensor) -> Tensor:
    """1 / sum_s w_s^2 `[...]`; 0 where all weights are."""
    squares = weights.square().sum(-1)
    return torch.where(squares > 0, 1 / squares.clamp(min=1e-12), 0.0)


def weighted_likelihood(log_q: Tensor, kept: Tensor, weights: Tensor) -> Tensor:
    """The M-step's gain `[A]`: sum_s w_s sum_k reach_{s,k} log q(z_{s,k}).

    Only `log_q` carries a gradient; weights and reach belong to the E-step.

    Args:
        log_q: `[A, P, K]`.
        kept: `reach` of each token, same shape.
        weights: Of the paths `[A, P]`.
    """
    return (weights.detach()[..., None] * kept.detach() * log_q).sum((-1, -2))


def confidence_penalty(
    divergence: Tensor, confidence: Tensor, arrived: Tensor, weights: Tensor
) -> Tensor:
    """Confidence-aware regulariser `[A]`: sum_s w_s sum_k arrived_{s,k} c_{s,k} KL(p || q)_{s,k}.

    Our reconstruction: where the drafter is sure of itself (c = max_v q(v), held fixed), it must be
    so for the target's reasons. `arrived` is the chance that verification gets to position k at
    all, the reach of the token before.

    Args:
        divergence: KL(p || q) at each position `[A, P, K]`.
        confidence: c, same shape.
        arrived: Same shape.
        weights: Of the paths `[A, P]`.
    """
    held = (weights[..., None] * arrived * confidence).detach()
    return (held * divergence).sum((-1, -2))


def arrival(kept: Tensor, real: Tensor) -> Tensor:
    """Chance that verification gets to each position `[..., K]`: 1, then the reach before it."""
    before = torch.cat([torch.ones_like(kept[..., :1]), kept[..., :-1]], -1)
    return before * real
