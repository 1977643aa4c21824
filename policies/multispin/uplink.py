"""Sharing one uplink so that the slowest of many users is as fast as it can be.

User k works for `d_k` seconds, then sends through the share `s_k` of a band; alone with the whole
band it would send for `n_k` seconds. All work side by side, the server waits for the last one:

    minimise  max_k (d_k + n_k / s_k)    subject to  sum_k s_k <= 1,  s_k >= 0

Whoever ends before the last one has band that would help the last one, so at the optimum all who
send end together, at phi, and `s_k = n_k / (phi - d_k)`. What is left is one equation:

    sum_k n_k / (phi - d_k) = 1,    phi > max d_k over those who send

This is the inner rule of Multi-SPIN (arXiv 2606.04581): Lemma 3 (equations 31 and 32) with
`d_k = L_k T_k` and `n_k = L_k Q_k / (r_k B)`, and Lemma 1 (equations 20 and 21) at `L_k = 1`. The
paper states that the root is unique; how it is found here is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_STEPS = 100
"""Newton needs 3 to 10; more only where the numbers differ by many orders of magnitude."""
CLOSE = 1e-14


def fastest_shares(work: Floats, sending: Floats) -> tuple[Floats, Floats]:
    """Shares of the band that let the last user end as early as possible.

    The reciprocal of the left side above is a weighted harmonic mean of the `phi - d_k`, hence
    concave and increasing in phi: Newton's method from below never overshoots, and is exact in one
    step for one user. The unknown is the distance to the largest `d_k`, so nothing cancels when
    sending is short against working.

    Args:
        work: Seconds before a user sends `[..., k]`, 0 or more.
        sending: Seconds that sending would take with the whole band `[..., k]`, 0 or more; 0 means
            that a user sends nothing.

    Returns:
        Shares `[..., k]` with sum 1 (equal ones where nobody sends; else 0 for who sends nothing),
        and the seconds until the last user has ended `[...]`.
    """
    last = work.max(axis=-1, keepdims=True)
    lead = last - work
    sends = sending > 0
    rest = np.maximum((sending - lead).max(axis=-1, keepdims=True), 0.0)
    for _ in range(MAX_STEPS):
        window = np.where(sends, rest + lead, 1.0)
        shares = sending / window
        total = shares.sum(axis=-1, keepdims=True)
        slope = (shares / window).sum(axis=-1, keepdims=True)
        step = total * np.maximum(total - 1.0, 0.0) / np.where(slope > 0, slope, 1.0)
        rest = rest + step
        if np.all(step <= CLOSE * rest):
            break
    shares = sending / np.where(sends, rest + lead, 1.0)
    total = shares.sum(axis=-1, keepdims=True)
    equal = 1.0 / work.shape[-1]
    shares = np.where(total > 0, shares / np.where(total > 0, total, 1.0), equal)
    return shares, (last + rest)[..., 0]


def access_seconds(work: Floats, sending: Floats, shares: Floats) -> Floats:
    """Seconds until the last user has worked and sent, for any shares (equations 15 and 26).

    Args:
        work: Seconds before a user sends `[..., k]`.
        sending: Seconds that sending would take with the whole band `[..., k]`.
        shares: Shares of the band `[..., k]`.

    Returns:
        Seconds `[...]`, infinite where somebody would send without a share.
    """
    alone = np.where(shares > 0, shares, 1.0)
    sent = np.where(shares > 0, sending / alone, np.where(sending > 0, np.inf, 0.0))
    return np.asarray((work + sent).max(axis=-1))
