"""Draft lengths for any belief about acceptance, also one that changes from token to token.

Multi-SPIN's closed form (`draftgym.policies.multispin.heterogeneous`) needs one acceptance per
user. What a draft of L tokens is expected to commit is, without that assumption,

    E_k(L) = 1 + c_k(1) + ... + c_k(L),    c_k(j): the chance that token j and all before it pass

and it is concave in L whatever the chances are, for c_k(j) cannot rise in j. So for a given moment
phi at which the last upload ends, everybody's next token has a worth (its chance, less what
verifying it costs) and takes so much more of the band (Lemma 3 says how much, convex in L): whoever
gains most per band goes first, until the band is full. That is the optimum up to the token that did
not fit any more. A grid over phi, refined around its best point, does the rest.

It serves beliefs that no single number can express (that of an oracle, say), and it is several
times as fast as the closed form with its exact search: agents that set beliefs train with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from draftgym.policies.multispin.problem import Lengths, Plan, RoundProblem
from draftgym.policies.multispin.uplink import Floats

GRID, PASSES = 10, 2
"""Values of phi in a pass over them, and passes, each around the best point of the one before."""
HALVINGS = 10
"""Steps of the search for the least gain per band that is still taken."""
LEAST = 1e-9
"""Tokens per whole band that nobody drafts for."""


def curve_plan(problem: RoundProblem, chances: Floats) -> Plan:
    """Lengths by what each token is worth, and the shares with which all end together.

    Args:
        problem: The rounds `[..., k]`; its acceptance is not read.
        chances: `c_k(j)` for j = 1 to the longest draft `[..., k, longest]`; made non-increasing.

    Returns:
        Lengths and shares `[..., k]` of the highest expected goodput found (equation 33).
    """
    flat = problem.as_batch()
    curves = np.minimum.accumulate(chances.reshape(*flat.draft_seconds.shape, -1), axis=-1)
    # What drafts of 0, 1, ... tokens are expected to commit [n, k, longest + 1].
    tokens = 1 + np.concatenate([np.zeros_like(curves[..., :1]), curves.cumsum(axis=-1)], axis=-1)
    tokens = np.where(flat.taking_part[..., None], tokens, 0.0)
    candidates, best = flat.with_candidates(), flat.shortest
    goodput = _goodput(candidates, tokens, best[:, None])[:, 0]
    low, high = flat.upload_range()
    for _ in range(PASSES):
        phi = np.geomspace(low, high, GRID, axis=1)
        found = _fill_band(flat, curves, goodput, phi)
        values = _goodput(candidates, tokens, found)
        top = values.argmax(axis=1)[:, None]
        value = np.take_along_axis(values, top, axis=1)[:, 0]
        chosen = np.take_along_axis(found, top[..., None], axis=1)[:, 0]
        best = np.where((value > goodput)[:, None], chosen, best)
        goodput = np.maximum(value, goodput)
        low = np.take_along_axis(phi, np.maximum(top - 1, 0), axis=1)[:, 0]
        high = np.take_along_axis(phi, np.minimum(top + 1, GRID - 1), axis=1)[:, 0]
    lengths = best.reshape(problem.draft_seconds.shape)
    return Plan(lengths, problem.fastest_shares(lengths)[0])


def belief_plan(problem: RoundProblem, actions: ArrayLike, longest: int) -> Plan:
    """The plan for users whose acceptance is believed to be so.

    Args:
        problem: The rounds `[..., k]`.
        actions: Numbers in [-1, 1] `[..., k]`, -1 being acceptance 0 and 1 being 1.
        longest: Longest draft.
    """
    believed = (np.asarray(actions, np.float64) + 1) / 2
    return curve_plan(problem, geometric_chances(believed, longest))


def geometric_chances(acceptance: Floats, longest: int) -> Floats:
    """Chances where every token passes with the same acceptance: `a^j` `[..., longest]`."""
    return np.asarray(acceptance[..., None] ** np.arange(1, longest + 1))


def _fill_band(problem: RoundProblem, curves: Floats, goodput: Floats, phi: Floats) -> Lengths:
    """Lengths that gain most by each of some moments.

    Args:
        problem: The rounds, of shape `[n, k]`.
        curves: Chances `[n, k, longest]`.
        goodput: What a second of the target's pass is worth, in tokens `[n]`.
        phi: When the last upload is to end `[n, m]`.

    Returns:
        Lengths `[n, m, k]`.
    """
    every = np.arange(curves.shape[-1] + 1)
    spare = phi[..., None, None] - problem.draft_seconds[:, None, :, None] * every
    share = problem.sending_seconds[:, None, :, None] * every / np.where(spare > 0, spare, 1.0)
    share = np.where(spare > 0, share, 2.0)  # out of reach: more than there is
    gain = curves - (goodput * problem.verification.per_token)[:, None, None]
    band = np.maximum(np.diff(share, axis=-1), 1e-300)
    rate = np.where(share[..., 1:] < 2.0, gain[:, None] / band, 0.0)
    shortest, longest = problem.shortest[:, None], problem.longest[:, None]

    def lengths_at(least: Floats) -> tuple[Lengths, Floats]:
        """Lengths whose every token gains at least so much per band, and the band they take."""
        taken = (rate >= least[..., None, None]).view(np.uint8)
        counts = np.einsum("nmkl->nmk", taken).astype(np.int64)  # several times as fast as sum
        lengths = np.clip(counts, shortest, longest)
        used = np.take_along_axis(share, lengths[..., None], axis=-1)[..., 0]
        return lengths, used.sum(axis=-1)

    # The logarithm of the least gain per band; nothing that gains nothing is ever taken.
    low = np.full(phi.shape, np.log(LEAST))
    high = np.log(np.maximum(rate.max(axis=(-2, -1)), LEAST)) + 1e-9
    for step in range(HALVINGS):
        middle = low if step == 0 else (low + high) / 2  # at first: is there band for everything?
        fits = lengths_at(np.exp(middle))[1] <= 1
        high = np.where(fits, middle, high)
        low = np.where(fits, low, middle)
    return lengths_at(np.exp(high))[0]


def _goodput(candidates: RoundProblem, tokens: Floats, lengths: Lengths) -> Floats:
    """Expected tokens over seconds, with the shares that suit lengths `[n, m, k]` best."""
    committed = np.take_along_axis(tokens[:, None], lengths[..., None], axis=-1)[..., 0].sum(-1)
    _, access = candidates.fastest_shares(lengths)
    return np.asarray(committed / (access + candidates.verification_seconds(lengths)))
