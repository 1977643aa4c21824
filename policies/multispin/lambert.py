"""The two real branches of Lambert's W as draft lengths need them: without overflow or cancelling.

W solves `W e^W = x`. The x of the closed forms leaves float64 quickly (`alpha ** -(phi / 2 T)`),
and where acceptance goes to 1 or drafting is nearly free, the forms subtract two numbers that
almost agree. Both functions below therefore take a logarithm and return the difference itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from draftgym.policies.multispin.uplink import Floats

SMALL = 0.02
"""Below this, `e^u - 1 - u` loses digits and its series does not need many terms."""


def lower_branch_log(excess: ArrayLike) -> Floats:
    """`ln(-W_{-1}(-e^{-1 - excess}))`: the u >= 0 that solves `e^u - 1 - u = excess`.

    With `y = -W_{-1}(-e^{-s})`, the definition reads `y - ln y = s`; u is `ln y`, excess `s - 1`.

    Args:
        excess: 0 or more, infinite included; below 0 there is no real solution and the answer is 0.
    """
    goal = np.maximum(np.asarray(excess, dtype=np.float64), 0.0)
    finite = np.where(np.isfinite(goal), goal, 1.0)
    # Both are upper bounds: e^u - 1 - u >= u^2 / 2, and it is >= goal at u = ln(2 goal + 2).
    root = np.minimum(np.sqrt(2 * finite), np.log(2 * finite + 2))
    for _ in range(6):  # Newton from above on a convex function; six are enough from these bounds
        slope = np.expm1(root)
        root = root - (_exp_excess(root) - finite) / np.where(slope > 0, slope, 1.0)
    return np.where(np.isfinite(goal), np.maximum(root, 0.0), np.inf)


def _exp_excess(u: Floats) -> Floats:
    """`e^u - 1 - u` for u >= 0 to full relative precision."""
    series = u * u / 2 * (1 + u / 3 * (1 + u / 4 * (1 + u / 5 * (1 + u / 6 * (1 + u / 7)))))
    return np.where(u < SMALL, series, np.expm1(u) - u)


def principal_branch_gap(scale: ArrayLike, level: ArrayLike) -> Floats:
    """`1 - W_0(p e^{p - s}) / p`: the v in [0, 1) that solves `p v - ln(1 - v) = s`.

    Where it comes from: put `w = p (1 - v)` into the equation and it is `w e^w = p e^{p - s}`.
    v is s / p for large p and 1 - e^{-s} for p = 0; W_0 / p itself would lose both.

    Args:
        scale: p, 0 or more, finite.
        level: s, finite; at 0 or below the answer is 0.
    """
    p = np.maximum(np.asarray(scale, dtype=np.float64), 1e-300)
    s = np.maximum(np.asarray(level, dtype=np.float64), 0.0)
    # First W_0 roughly, by its asymptotic forms in z = ln(p e^{p - s}), then Newton on
    # q = -ln(1 - v), where the equation is q + p (1 - e^{-q}) = s: concave and well conditioned.
    z = np.log(p) + p - s
    rough = np.where(z > 1, z - np.log(np.maximum(z, 1.0)), np.exp(np.minimum(z, 1.0)))
    q = np.maximum(np.log(p) - np.log(np.maximum(rough, 1e-300)), 0.0)
    q = np.maximum(np.minimum(q, s), np.maximum(s / (1 + p), s - p))
    for _ in range(5):
        shrunk = np.exp(-q)
        q = np.maximum(q - (q - p * np.expm1(-q) - s) / (1 + p * shrunk), 0.0)
    return np.asarray(-np.expm1(-q))
