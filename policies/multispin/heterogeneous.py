"""A draft length for every user: Proposition 1 of Multi-SPIN (arXiv 2606.04581), made practical.

Fix when the last user has sent, phi. User k needs the share `s_k(L) = n_k L / (phi - L T_k)` to be
done by then (Lemma 3; n_k: seconds of one token on the whole band), which is convex in L, while its
expected tokens `E_k(L)` are concave. So the best real lengths are where a Lagrangian is flat:

    E_k'(L) = lambda s_k'(L)  i.e.  b e^{-b (L + 1)} / (1 - a) = lambda n_k phi / (phi - L T_k)^2

(a: the user's acceptance, b = -ln a, lambda: the tokens that a little more band is worth). Take
half of the logarithm, and write `L = v phi / T_k`:

    p v - ln(1 - v) = s,    p = b phi / (2 T_k),   s = ln(a b phi / ((1 - a) lambda n_k)) / 2

whence `v = 1 - W_0(p e^{p - s}) / p`. This is equation 37 (`phi / T + (2 / ln a) W_0(...)`) in a
form that does not overflow: Wright's omega is `W_0(e^z)`. Lambda is whatever makes the shares sum
to 1.

Over phi, goodput is a function of one variable. The paper lays a grid over (phi, lambda), rounds
the lengths of each point (equation 36), lets the last user end at the phi of the rounded lengths
and keeps the best (Algorithm 1). Here the grid is over phi alone, lambda is solved for, and the
grid is refined around its best point.

Ours: that; bounds on lengths, 0 included (a bound that binds only clips, because each user's part
is concave); floors beside roundings; the integer search after them (`improve_lengths`: rounding is
a heuristic, and no optimum is proved for it); and a cost c per drafted token in the target's pass.
With it, a token must also earn `g c`, g being the goodput (Dinkelbach's price for a ratio), and
E_k' - g c takes the place of E_k'. That has no closed form, but its root lies left of the one
above, and Newton's method runs to it from there without overshooting (the logarithm of the
condition is concave in L).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import wrightomega

from draftgym.policies.multispin.baselines import homogeneous_plan, uniform_bandwidth_plan
from draftgym.policies.multispin.problem import Lengths, Plan, RoundProblem
from draftgym.policies.multispin.uplink import Floats

GRID = 16
"""Values of phi in a pass over them."""
ALMOST = 1e-12
"""Distance of acceptance from 0 and 1 that lengths can no longer feel."""
MAX_MOVES = 100
"""Exchanges; the search ends long before, and it cannot run in a circle since every move gains."""
GAIN = 1e-12
"""Relative gain below which a move is rounding noise."""


@dataclass(frozen=True)
class _Users:
    """The users of n groups, ready for values of phi along axis 1: every array is `[n, 1, k]`.

    Attributes:
        draft: Seconds per drafted token, above 0.
        send: Seconds of one token on the whole band, above 0.
        decay: `b = -ln a`.
        log_first: `ln E'(-1)`, the logarithm of `b / (1 - a)`.
        shortest: Least length.
        longest: Greatest length.
        price: Expected tokens that a drafted token must earn, `[n, 1, 1]`.
    """

    draft: Floats
    send: Floats
    decay: Floats
    log_first: Floats
    shortest: Floats
    longest: Floats
    price: Floats

    @classmethod
    def of(cls, problem: RoundProblem, price: Floats) -> _Users:
        accept = np.clip(problem.acceptance, ALMOST, 1 - ALMOST)
        decay = -np.log(accept)
        # A user that drafts or sends for free would divide by 0: 1e-12 of what counts is free.
        scale = ALMOST * problem.verification_seconds(problem.shortest)[..., None]

        def each(value: ArrayLike) -> Floats:
            return np.asarray(value, dtype=np.float64)[:, None, :]

        return cls(
            draft=each(np.maximum(problem.draft_seconds, scale)),
            send=each(np.maximum(problem.sending_seconds, scale)),
            decay=each(decay),
            log_first=each(np.log(decay / (1 - accept))),
            shortest=each(problem.shortest),
            longest=each(problem.longest),
            price=price[:, None, None],
        )

    def caps(self, phi: Floats) -> Floats:
        """Lengths that fit with the whole band `[n, m, k]`."""
        return np.clip(phi / (self.draft + self.send), self.shortest, self.longest)

    def log_price_of_band(self, phi: Floats, lengths: Floats) -> Floats:
        """The ln lambda at which these lengths are chosen if drafted tokens cost nothing."""
        spare = np.maximum(phi - lengths * self.draft, ALMOST * phi)
        gain = self.log_first - self.decay * (lengths + 1)
        return np.asarray(gain + 2 * np.log(spare) - np.log(self.send * phi))

    def lengths(self, phi: Floats, log_lambda: Floats, caps: Floats) -> Floats:
        """Proposition 1: real lengths `[n, m, k]` for phi and ln lambda `[n, m, 1]`, clipped."""
        level = self.log_first - self.decay + np.log(phi) - np.log(self.send) - log_lambda
        most = phi / self.draft
        p, s = self.decay * most / 2, np.maximum(level, 0) / 2
        lengths: Floats = most * (1 - wrightomega(np.log(p) + p - s) / p)
        if np.any(self.price > 0):
            lengths = self._priced(lengths, phi, log_lambda)
        return np.clip(lengths, self.shortest, caps)

    def _priced(self, lengths: Floats, phi: Floats, log_lambda: Floats) -> Floats:
        """Moves lengths left until a token also earns its price."""
        for _ in range(6):
            spare = np.maximum(phi - lengths * self.draft, ALMOST * phi)
            band = np.exp(log_lambda + np.log(self.send * phi) - 2 * np.log(spare))
            cost = band + self.price
            miss = self.log_first - self.decay * (lengths + 1) - np.log(cost)
            slope = self.decay + 2 * self.draft / spare * band / cost
            lengths = np.maximum(lengths + np.minimum(miss, 0.0) / slope, 0.0)
        return lengths

    def shares(
        self, phi: Floats, lengths: Floats, log_lambda: Floats, caps: Floats
    ) -> tuple[Floats, Floats]:
        """Sum of the shares that lengths need, and its derivative by ln lambda `[n, m, 1]`."""
        spare = np.maximum(phi - lengths * self.draft, ALMOST * phi)
        band = self.send * phi / spare**2
        # Of what a token must earn, the part that pays for band; the rest pays its price.
        with np.errstate(divide="ignore"):
            part = 1 / (1 + np.exp(np.minimum(np.log(self.price) - log_lambda - np.log(band), 700)))
        free = (lengths > self.shortest) & (lengths < caps)
        steps = np.where(free, part / (self.decay + 2 * self.draft / spare * part), 0.0)
        total = (self.send * lengths / spare).sum(axis=-1, keepdims=True)
        return total, -(band * steps).sum(axis=-1, keepdims=True)


def best_lengths_at(users: _Users, phi: Floats, steps: int) -> Floats:
    """Real lengths `[n, m, k]` that commit most by phi `[n, m, 1]`: lambda is searched for.

    The sum of shares falls in lambda. Newton's method looks for the root of its logarithm, and
    halves the bracket where it would leave it (there are kinks where bounds begin to bind).
    """
    caps = users.caps(phi)
    low = users.log_price_of_band(phi, caps).min(axis=-1, keepdims=True)
    low = low - 40.0 * (users.price > 0)
    high = users.log_price_of_band(phi, users.shortest).max(axis=-1, keepdims=True)
    middle = (low + high) / 2
    for _ in range(steps):
        total, slope = users.shares(phi, users.lengths(phi, middle, caps), middle, caps)
        over = total > 1
        low, high = np.where(over, middle, low), np.where(over, high, middle)
        falls = (slope < -ALMOST) & (total > ALMOST)
        move = np.log(np.where(falls, total, 1.0)) * total / np.where(falls, -slope, 1.0)
        newton = middle + move
        inside = falls & (newton >= low) & (newton <= high)
        middle = np.where(inside, newton, (low + high) / 2)
    return users.lengths(phi, middle, caps)


def relaxed_lengths(problem: RoundProblem) -> Floats:
    """The real lengths of highest goodput `[..., k]`: what rounding starts from, unrounded."""
    flat = problem.as_batch()
    goodput = flat.goodput(homogeneous_plan(flat))
    lengths = _best(flat.with_candidates(), _candidates(flat, goodput, passes=8, steps=60))
    return lengths.reshape(problem.draft_seconds.shape)


def heterogeneous_plan(problem: RoundProblem) -> Plan:
    """A length for every user, and the shares with which all end together.

    The best of the real lengths rounded and floored, of Homo's and of Uni-BW's, improved from
    there.

    Args:
        problem: The rounds `[..., k]`.

    Returns:
        Lengths and shares `[..., k]`.
    """
    flat = problem.as_batch()
    homogeneous = homogeneous_plan(flat)
    real = _candidates(flat, flat.goodput(homogeneous), passes=2, steps=6)
    starts = (homogeneous, uniform_bandwidth_plan(flat))
    whole = [np.rint(real), np.floor(real), *(plan.lengths[:, None] for plan in starts)]
    best = _best(flat.with_candidates(), np.concatenate(whole, axis=1)).astype(np.int64)
    lengths = improve_lengths(flat, best).reshape(problem.draft_seconds.shape)
    return Plan(lengths, problem.fastest_shares(lengths)[0])


def improve_lengths(problem: RoundProblem, lengths: Lengths) -> Lengths:
    """Lengths that no single exchange improves.

    With few users or short drafts, a token more or less is much. Here the goodput of all lengths
    that differ by one token of one user or of everybody is computed exactly (with the best shares
    for each), and the best is moved to; where none is better, those that pass a token from one user
    to another (380 for 20 users, all at once); until none of these is. No proof makes that the
    optimum: against brute force over all lengths (1 to 5 users, payloads of 1 to a million bits,
    costs per token from none to 30 ms) 6 of 14,127 random rounds fell short, by at most 0.5 %.

    Args:
        problem: The rounds, of shape `[n, k]`.
        lengths: Where to start, within bounds `[n, k]`.

    Returns:
        Lengths `[n, k]`.
    """
    candidates = problem.with_candidates()
    goodput = problem.goodput_of_lengths(lengths)
    steps, exchanges = _moves(lengths.shape[-1])
    moves = steps
    for _ in range(MAX_MOVES):
        near = np.clip(lengths[:, None] + moves, candidates.shortest, candidates.longest)
        values = candidates.goodput_of_lengths(near)
        top = values.argmax(axis=1)[:, None]
        best = np.take_along_axis(values, top, axis=1)[:, 0]
        better = best > goodput * (1 + GAIN)
        if better.any():
            chosen = np.take_along_axis(near, top[..., None], axis=1)[:, 0]
            lengths = np.where(better[:, None], chosen, lengths)
            goodput = np.where(better, best, goodput)
            moves = steps
        elif moves is steps and len(exchanges):
            moves = exchanges
        else:
            break
    return lengths


@lru_cache(maxsize=64)
def _moves(users: int) -> tuple[Lengths, Lengths]:
    """One token more or less of one user or of everybody `[m, k]`; one passed on `[e, k]`."""
    one = np.eye(users, dtype=np.int64)
    everybody = np.ones((1, users), dtype=np.int64)
    pairs = (one[:, None] - one[None, :])[~np.eye(users, dtype=bool)]
    return np.concatenate([one, -one, everybody, -everybody]), pairs


def _best(candidates: RoundProblem, lengths: Floats) -> Floats:
    """Of lengths `[n, m, k]`, those of highest goodput `[n, k]`; the first of equals."""
    top = candidates.goodput_of_lengths(lengths).argmax(axis=1)
    return np.asarray(np.take_along_axis(lengths, top[:, None, None], axis=1)[:, 0])


def _candidates(problem: RoundProblem, goodput: Floats, passes: int, steps: int) -> Floats:
    """Best real lengths at every phi that was looked at `[n, m, k]`, and the shortest ones.

    Args:
        problem: The rounds, of shape `[n, k]`.
        goodput: One that can be had `[n]`.
        passes: Grids over phi, each around the best point of the one before.
        steps: Steps of the search for lambda.
    """
    candidates = problem.with_candidates()
    shortest = problem.shortest.astype(np.float64)
    # With length 0 allowed phi may go to 0; below a tenth of one token no whole length is near.
    low, high = problem.upload_range(0.1)
    found = [shortest[:, None]]
    for _ in range(passes):
        phi = np.geomspace(low, high, GRID, axis=1)
        users = _Users.of(problem, goodput * problem.verification.per_token)
        found.append(best_lengths_at(users, phi[..., None], steps))
        values = candidates.goodput_of_lengths(found[-1])
        goodput = np.maximum(goodput, values.max(axis=1))
        top = values.argmax(axis=1)[:, None]
        low = np.take_along_axis(phi, np.maximum(top - 1, 0), axis=1)[:, 0]
        high = np.take_along_axis(phi, np.minimum(top + 1, GRID - 1), axis=1)[:, 0]
    return np.concatenate(found, axis=1)
