"""What Multi-SPIN is compared with (arXiv 2606.04581, section VI-A.4), by the same description.

| plan | lengths | band |
|---|---|---|
| `fixed_plan` | 8 for all (Fixed BW&L) | equal shares |
| `uniform_bandwidth_plan` | one for each user (Uni-BW) | equal shares |
| `alone_plan` | each user's best (P2P) | all of it, in turn |
| `selfish_plan` | each user's best as if it were alone with its share | equal shares |
| `homogeneous_plan` | one for all (Homo) | Lemma 1 |
| `common_acceptance_plan` | one for all, as if all accepted alike (Theorem 1) | Lemma 1 |
| `heterogeneous.heterogeneous_plan` | one for each user (Hete) | Lemma 3 |

With one length L, the slowest user ends at `L max_k (T_k + Q_k / (B_k r_k))`, so the shares that
are best do not depend on L (Lemma 1): they let every user take the same theta seconds a token. A
weak device or channel gets more of the band, whatever its acceptance. The paper searches Homo's L
exhaustively; where all accept alike, goodput has one maximum over L, in closed form (Theorem 1,
equation 24). The search finds the same length, for lengths are whole and few.

The paper's P2P is one device and a target of its own; with K users on one target we let them take
turns, each with the whole band and a pass of its own. Its Uni-BW rounds a relaxation; ours is the
exact whole optimum, so a gain over it is not a gain over rounding. The paper's Cen-SPIN (drafting
at the server) is missing: it gives no formula for its time.
"""

from __future__ import annotations

import numpy as np

from draftgym.policies.multispin.problem import Lengths, Plan, RoundProblem, expected_tokens
from draftgym.policies.multispin.uplink import Floats

FIXED_LENGTH = 8
"""The paper's."""
PRICE_STEPS = 8
"""Dinkelbach's iteration converges faster than Newton's; it ends in 2 to 4."""


def fixed_plan(problem: RoundProblem, length: int = FIXED_LENGTH) -> Plan:
    """The same length and the same share for everybody, whoever they are."""
    return Plan(np.clip(length, problem.shortest, problem.longest), problem.equal_shares())


def homogeneous_plan(problem: RoundProblem) -> Plan:
    """The paper's Homo baseline: Lemma 1's shares, and the one length that is best for all.

    Every user counts with its own acceptance.
    """
    shares, token_seconds = problem.fastest_shares(problem.taking_part.astype(np.int64))
    every = np.arange(problem.min_length, problem.max_length + 1)
    candidates = problem.with_candidates()
    lengths = np.where(candidates.taking_part, every[:, None], 0)
    access = token_seconds[..., None] * every
    goodput = candidates.tokens(lengths) / (access + candidates.verification_seconds(lengths))
    length = every[goodput.argmax(axis=-1)]
    return Plan(np.where(problem.taking_part, length[..., None], 0), shares)


def common_acceptance_plan(problem: RoundProblem) -> Plan:
    """`homogeneous_plan` as if every user accepted like the mean user: Theorem 1's length."""
    users = np.maximum(problem.users, 1)
    mean = (problem.taking_part * problem.acceptance).sum(axis=-1) / users
    return homogeneous_plan(problem.with_acceptance(np.clip(mean, 0.0, 1.0)[..., None]))


def uniform_bandwidth_plan(problem: RoundProblem) -> Plan:
    """The best length for each user when the band is divided equally.

    Without contention for the band, a user adds `theta_k` seconds a token, and whoever ends before
    the last one may add tokens for free. So in the optimum everybody drafts `floor(phi / theta_k)`
    for some phi at which somebody ends: all such phi are tried. Where drafted tokens cost the
    target c seconds each, nobody drafts tokens that are expected to earn less than `g c`, g being
    the goodput, which is iterated to its fixed point (Dinkelbach).
    """
    flat = problem.as_batch()
    shares = flat.equal_shares()
    theta = flat.draft_seconds + flat.sending_seconds / np.where(shares > 0, shares, 1.0)
    every = np.arange(problem.max_length + 1)
    ends = (theta[..., None] * every).reshape(len(theta), -1)
    # The tolerance keeps floor(l theta / theta) = l.
    fit = np.floor(ends[..., None] * (1 + 1e-12) / np.maximum(theta, 1e-300)[:, None])
    lowest, highest = flat.shortest[:, None], flat.longest[:, None]
    candidates = flat.with_candidates()
    best = flat.shortest
    goodput = np.zeros(len(theta))
    for _ in range(PRICE_STEPS):
        worth = _worth(flat, goodput * flat.verification.per_token)[:, None]
        lengths = np.clip(np.minimum(fit, worth), lowest, highest).astype(np.int64)
        access = (lengths * theta[:, None]).max(axis=-1)
        values = candidates.tokens(lengths) / (access + candidates.verification_seconds(lengths))
        top = values.argmax(axis=1)[:, None]
        value = np.take_along_axis(values, top, axis=1)[:, 0]
        gains = value > goodput
        chosen = np.take_along_axis(lengths, top[..., None], axis=1)[:, 0]
        best = np.where(gains[:, None], chosen, best)
        goodput = np.maximum(goodput, value)
        if not gains.any() or not flat.verification.per_token:
            break
    return Plan(best.reshape(problem.draft_seconds.shape), problem.equal_shares())


def _worth(problem: RoundProblem, price: Floats) -> Floats:
    """Longest draft whose last token, number L, still earns its price: `a^L >= price` `[n, k]`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        tokens = np.log(price)[:, None] / np.log(problem.acceptance)
    tokens = np.where(problem.acceptance > 0, tokens, 0.0)
    certain = problem.acceptance >= 1
    tokens = np.where(certain, np.where(price[:, None] <= 1, np.inf, 0.0), tokens)
    return np.where(price[:, None] > 0, np.floor(np.maximum(tokens, 0.0) + 1e-12), np.inf)


def alone_plan(problem: RoundProblem) -> Plan:
    """P2P: users in turn, each with the whole band, its own pass, and its best length for these."""
    whole = np.where(problem.taking_part, 1.0, 0.0)
    return Plan(_best_alone(problem, whole, users=1), whole, in_turn=True)


def selfish_plan(problem: RoundProblem, longest: int = 15) -> Plan:
    """Each user's own best length at an equal share, deaf to whom it keeps waiting.

    This is GELATO's budget (arXiv 2605.10124, Algorithm 1: enumerate 1 to 15) without its energy
    queue, which needs an energy budget that this system does not have.
    """
    shares = problem.equal_shares()
    lengths = _best_alone(problem, shares, users=None)
    return Plan(np.clip(lengths, problem.shortest, np.minimum(longest, problem.longest)), shares)


def _best_alone(problem: RoundProblem, shares: Floats, users: int | None) -> Lengths:
    """The length of highest own goodput `[..., k]`; a pass is shared by `users`, None for all."""
    every = np.arange(problem.min_length, problem.max_length + 1)
    theta = problem.draft_seconds + problem.sending_seconds / np.where(shares > 0, shares, 1.0)
    batch = problem.users[..., None, None] if users is None else users
    seconds = theta[..., None] * every + problem.verification.seconds(batch, every)
    goodput = expected_tokens(problem.acceptance[..., None], every) / seconds
    return np.where(problem.taking_part, every[goodput.argmax(axis=-1)], 0)
