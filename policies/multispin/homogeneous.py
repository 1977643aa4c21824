"""One draft length for all users: Lemma 1 and Theorem 1 of Multi-SPIN (arXiv 2606.04581).

With one length L, the slowest user ends at `L max_k (T_k + Q_k / (B_k r_k))`, so the shares that
are best do not depend on L (Lemma 1): they let every user take the same theta seconds a token. A
weak device or channel gets more of the band, whatever its acceptance.

With one acceptance `a` as well, goodput over L is `(1 - a^(L + 1)) / (L theta + t)` up to a factor,
t being the pass of the target. Its derivative vanishes where, with `b = -ln a`,

    e^u - 1 - u = b (t / theta - 1),    u = b (L + 1)

(the numerator grows by ever less, the denominator by the same: one maximum, Theorem 1). Hence
`u = ln(-W_{-1}(-e^{-1 - b (t / theta - 1)}))` and L = u / b - 1 (equation 24); L > 0 is the paper's
condition `t / theta > (1 - a) / (a |ln a|)`. A unimodal function is largest over the integers next
to its maximum, or at the end of the range towards it.

The paper's: both results, and that the Homo baseline searches L exhaustively where users accept
differently. Ours: a cost per drafted token (it adds to theta what one token of every user costs the
target, and changes nothing else), and the ends a = 0, a = 1, theta = 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from draftgym.policies.multispin.lambert import lower_branch_log
from draftgym.policies.multispin.problem import Lengths, Plan, RoundProblem, expected_tokens
from draftgym.policies.multispin.uplink import Floats


def relaxed_uniform_length(
    acceptance: ArrayLike, token_seconds: ArrayLike, pass_seconds: ArrayLike
) -> Floats:
    """Equation 24: the real length of highest goodput; -1 to infinity, useful above 0.

    Args:
        acceptance: `a` in [0, 1], the same for all users.
        token_seconds: `theta`, what one more token of every user adds to a round; 0 or more.
        pass_seconds: `t`, what a round costs without any draft; above 0.
    """
    accept = np.asarray(acceptance, dtype=np.float64)
    theta = np.asarray(token_seconds, dtype=np.float64)
    with np.errstate(
        divide="ignore"
    ):  # a = 0 decays infinitely fast, theta = 0 is infinitely cheap
        decay = -np.log(accept)
        ratio = np.asarray(pass_seconds) / theta
    # At the ends the limit is taken: nothing beyond the first token at a = 0, everything at a = 1.
    finite_decay = np.clip(decay, 1e-300, 1e300)
    excess = np.where(ratio > 1, finite_decay * np.maximum(ratio - 1, 0), 0.0)
    length = lower_branch_log(excess) / finite_decay - 1
    length = np.where(ratio > 1, length, -1.0)
    return np.where(accept > 0, np.where((decay > 0) | (ratio <= 1), length, np.inf), -1.0)


def uniform_length(
    acceptance: ArrayLike,
    token_seconds: ArrayLike,
    pass_seconds: ArrayLike,
    shortest: int = 0,
    longest: int = 25,
) -> Lengths:
    """Theorem 1: the whole length of highest goodput (equation 23), within bounds.

    Args:
        acceptance: See `relaxed_uniform_length`.
        token_seconds: See there.
        pass_seconds: See there.
        shortest: Shortest length.
        longest: Longest length.
    """
    relaxed = relaxed_uniform_length(acceptance, token_seconds, pass_seconds)
    below = np.floor(np.clip(relaxed, shortest, longest))
    above = np.minimum(below + 1, longest)

    def goodput(length: Floats) -> Floats:
        seconds = length * np.asarray(token_seconds) + np.asarray(pass_seconds)
        return np.asarray(expected_tokens(acceptance, length) / seconds)

    return np.where(goodput(above) > goodput(below), above, below).astype(np.int64)


def common_acceptance_plan(problem: RoundProblem) -> Plan:
    """Lemma 1 and Theorem 1 as if every user accepted like the mean user.

    Returns:
        One length for all who take part, and shares that equalise their seconds per token.
    """
    shares, token_seconds = _token_seconds(problem)
    users = np.maximum(problem.users, 1)
    mean = (problem.taking_part * problem.acceptance).sum(axis=-1) / users
    length = uniform_length(
        np.clip(mean, 0.0, 1.0),
        token_seconds,
        problem.verification_seconds(np.zeros_like(problem.shortest)),
        problem.min_length,
        problem.max_length,
    )
    return Plan(np.where(problem.taking_part, length[..., None], 0), shares)


def homogeneous_plan(problem: RoundProblem) -> Plan:
    """The paper's Homo baseline: Lemma 1's shares, and the one length that is best for all.

    Every user counts with its own acceptance; the length is searched, as the paper does.
    """
    shares, token_seconds = _token_seconds(problem)
    every = np.arange(problem.min_length, problem.max_length + 1)
    candidates = problem.with_candidates()
    lengths = np.where(candidates.taking_part, every[:, None], 0)
    access = (token_seconds[..., None] - _target_token_seconds(problem)[..., None]) * every
    goodput = candidates.tokens(lengths) / (access + candidates.verification_seconds(lengths))
    length = every[goodput.argmax(axis=-1)]
    return Plan(np.where(problem.taking_part, length[..., None], 0), shares)


def _token_seconds(problem: RoundProblem) -> tuple[Floats, Floats]:
    """Lemma 1's shares `[..., k]`, and what one more token of every user costs `[...]`."""
    shares, theta = problem.fastest_shares(problem.taking_part.astype(np.int64))
    return shares, theta + _target_token_seconds(problem)


def _target_token_seconds(problem: RoundProblem) -> Floats:
    return problem.verification.per_token * np.asarray(problem.users, dtype=np.float64)
