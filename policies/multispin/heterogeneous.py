"""A draft length for every user: Proposition 1 of Multi-SPIN (arXiv 2606.04581), made practical.

Fix when the last user has sent, phi. User k needs the share `s_k(L) = n_k L / (phi - L T_k)` to be
done by then (Lemma 3; n_k: seconds of one token on the whole band), which is convex in L, while its
expected tokens `E_k(L)` are concave. So the best real lengths are where a Lagrangian is flat:

    E_k'(L) = lambda s_k'(L)  i.e.  b e^{-b (L + 1)} / (1 - a) = lambda n_k phi / (phi - L T_k)^2

(a: the user's acceptance, b = -ln a, lambda: the tokens that a little more band is worth). Take
half of the logarithm, and write `L = v phi / T_k`:

    p v - ln(1 - v) = s,    p = b phi / (2 T_k),   s = ln(a b phi / ((1 - a) lambda n_k)) / 2

whence `v = 1 - W_0(p e^{p - s}) / p`. This is equation 37 (`phi / T + (2 / ln a) W_0(...)`) in a
form that neither overflows nor cancels. Lambda is whatever makes the shares sum to 1.

Over phi, goodput is a function of one variable. The paper lays a grid over (phi, lambda), rounds
the lengths of each point (equation 36), lets the last user end at the phi of the rounded lengths
and keeps the best (Algorithm 1). Here the grid is over phi alone, lambda is solved for, and the
grid is refined around its best point.

Ours: that; bounds on lengths, 0 included (a bound that binds only clips, because each user's part
is concave); floors beside roundings; the integer search after them (rounding is a heuristic, and no
optimum is proved for it); and a cost c per drafted token in the target's pass. With it, a token
must also earn `g c`, g being the goodput (Dinkelbach's price for a ratio), and E_k' - g c takes the
place of E_k'. That has no closed form, but its root lies left of the one above, and Newton's method
runs to it from there without overshooting (the logarithm of the condition is concave in L).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from draftgym.policies.multispin.baselines import uniform_bandwidth_plan
from draftgym.policies.multispin.homogeneous import homogeneous_plan
from draftgym.policies.multispin.integers import improve_lengths
from draftgym.policies.multispin.lambert import principal_branch_gap
from draftgym.policies.multispin.problem import Plan, RoundProblem
from draftgym.policies.multispin.uplink import Floats

GRID = 16
"""Values of phi in a pass over them."""
ALMOST = 1e-12
"""Distance of acceptance from 0 and 1 that lengths can no longer feel."""


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
        lengths = most * principal_branch_gap(self.decay * most / 2, level / 2)
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


def heterogeneous_plan(problem: RoundProblem, improve: bool = True) -> Plan:
    """A length for every user, and the shares with which all end together.

    Args:
        problem: The rounds.
        improve: Whether to consider floors and the plans of Homo and Uni-BW as well, and to go on
            from the best to better whole lengths. False is the paper's rounding and nothing else.

    Returns:
        Lengths and shares `[..., k]`.
    """
    flat = problem.as_batch()
    candidates = flat.with_candidates()
    homogeneous = homogeneous_plan(flat)
    real = _candidates(flat, flat.goodput(homogeneous), passes=2, steps=6)
    whole = [np.rint(real)]
    if improve:
        starts = (homogeneous, uniform_bandwidth_plan(flat))
        whole += [np.floor(real), *(plan.lengths[:, None].astype(np.float64) for plan in starts)]
    lengths = _best(candidates, np.concatenate(whole, axis=1)).astype(np.int64)
    if improve:
        lengths = improve_lengths(flat, lengths)
    lengths = lengths.reshape(problem.draft_seconds.shape)
    return Plan(lengths, problem.fastest_shares(lengths)[0])


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
    low, high = _range_of_phi(problem)
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


def _range_of_phi(problem: RoundProblem) -> tuple[Floats, Floats]:
    """From where only the shortest drafts are sent, to where the longest ones are `[n]`."""
    low, high = (problem.fastest_shares(x)[1] for x in (problem.shortest, problem.longest))
    token = problem.draft_seconds + problem.sending_seconds
    quickest = np.where(problem.taking_part, token, np.inf).min(axis=-1)
    # With length 0 allowed phi may go to 0; below a tenth of one token no whole length is near.
    quickest = np.where(np.isfinite(quickest), 0.1 * quickest, 0.0)
    low = np.maximum(np.maximum(low, quickest), 1e-12)
    return low, np.maximum(high, low)
