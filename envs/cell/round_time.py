"""When a round is over: pure functions of who is ready when.

Synchronous rounds are the papers': everybody drafts and uploads side by side, the server waits for
the slowest and verifies all drafts in one pass. In asynchronous rounds, which are our addition, it
waits for a window after the first arrival and verifies who is there; the others go on and are
verified later.

Notation: K = users. All times are seconds; leading dimensions are environments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def upload_seconds(bits: ArrayLike, rate: ArrayLike) -> NDArray[np.float64]:
    """Time on the air (2606.04581 eq. 9, 2608.29618 eq. 19).

    Args:
        bits: What each user sends `[..., K]`.
        rate: Bits per second, same shape.

    Returns:
        Seconds `[..., K]`: 0 for who sends nothing, infinity for who sends at no rate.
    """
    bits, rate = np.broadcast_arrays(np.asarray(bits, float), np.asarray(rate, float))
    forever = np.where(bits > 0, np.inf, 0.0)
    return np.asarray(np.divide(bits, rate, out=forever, where=(rate > 0) & (bits > 0)))


@dataclass(frozen=True)
class RoundTime:
    """Where the time of synchronous rounds goes, `[...]` each.

    Attributes:
        multi_access: Until the slowest has drafted and uploaded (2606.04581 eq. 26).
        verification: One pass for all.
        reply: Until the slowest has what it needs for its next round.
    """

    multi_access: NDArray[np.float64]
    verification: NDArray[np.float64]
    reply: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """Time of the round (2606.04581 eq. 16; 2608.29618 eq. 21)."""
        return self.multi_access + self.verification + self.reply


def synchronous_round(
    draft: NDArray[np.float64],
    upload: NDArray[np.float64],
    verification: ArrayLike,
    reply: ArrayLike = 0.0,
    present: NDArray[np.bool_] | None = None,
) -> RoundTime:
    """Time of rounds in which the server waits for everybody.

    Args:
        draft: Seconds of drafting `[..., K]`.
        upload: Seconds of uploading, which begins when the draft is complete, `[..., K]`.
        verification: Seconds of the pass `[...]`.
        reply: Seconds that each user spends after it `[..., K]`: correcting a rejected token
            (2608.29618), or a downlink. 2606.04581 neglects the downlink: 0.
        present: Who takes part `[..., K]`; None for all. Of others nothing is read.
    """
    ready = np.asarray(draft, float) + np.asarray(upload, float)
    everyone = np.ones(ready.shape, bool) if present is None else np.asarray(present)
    after = np.broadcast_to(np.asarray(reply, float), ready.shape)
    slowest = ready.max(-1, where=everyone, initial=0.0)
    return RoundTime(
        slowest,
        np.broadcast_to(np.asarray(verification, float), slowest.shape),
        after.max(-1, where=everyone, initial=0.0),
    )


@dataclass(frozen=True)
class Batch:
    """What an asynchronous server verifies next.

    Attributes:
        start: When the pass begins `[...]`.
        taken: Whose draft is in it `[..., K]`.
    """

    start: NDArray[np.float64]
    taken: NDArray[np.bool_]


def next_batch(arrivals: NDArray[np.float64], window: float, free_at: ArrayLike = 0.0) -> Batch:
    """The next batch of a server that waits for a window and verifies whoever is there.

    The window opens with the first arrival. The pass begins when the window closes, or at once when
    the last expected draft is there, but not before the server is free; a draft that comes while it
    is busy is in the batch as well. An infinite window gives synchronous rounds, a window of 0
    verifies as soon as there is something.

    Args:
        arrivals: When each user's draft is complete at the server `[..., K]`; infinity for who is
            sending none.
        window: Seconds to wait after the first arrival.
        free_at: When the server has finished its last pass `[...]`.

    Returns:
        The batch. Where nobody is expected it is empty and begins when the server is free.

    Raises:
        ValueError: A negative window.
    """
    if not window >= 0:
        raise ValueError(f"a window of {window} seconds")
    arrivals = np.asarray(arrivals, float)
    expected = np.isfinite(arrivals)
    last = arrivals.max(-1, where=expected, initial=-np.inf)
    start = np.maximum(np.minimum(arrivals.min(-1) + window, last), np.asarray(free_at, float))
    return Batch(start, expected & (arrivals <= start[..., None]))
