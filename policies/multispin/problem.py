"""One round of many users who draft by themselves and share an uplink and a target.

    all draft and send, side by side  ->  the target verifies them in one batch  ->  all commit

The system of Multi-SPIN (arXiv 2606.04581, sections II and III). User k drafts `L_k` tokens of
`T_k` seconds, sends `Q_k` bits for each through `B_k` hertz that carry `r_k` bits a second each:

    seconds = max_k L_k (T_k + Q_k / (B_k r_k)) + fixed + users * per_user + tokens * per_token
    tokens  = sum_k (1 - a_k^(L_k + 1)) / (1 - a_k)

(equations 7, 12, 13 and 26). `a_k` is the chance that the target accepts a drafted token, taken as
the same at every position: that is the model's assumption, not the truth. The cost per drafted
token is ours (the paper's batch costs the same whatever the lengths), and so is draft length 0: a
round in which a user only takes the target's own token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.policies.multispin.uplink import Floats, access_seconds, fastest_shares

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class VerificationCost:
    """Seconds of one batched pass of the target, affine in users and tokens (equation 7).

    Attributes:
        fixed: Seconds of any pass.
        per_user: Seconds more for each user in the batch.
        per_token: Seconds more for each drafted token in it; 0 in the paper.
    """

    fixed: float
    per_user: float
    per_token: float = 0.0

    def __post_init__(self) -> None:
        if not all(np.isfinite(value) and value >= 0 for value in (self.fixed, self.per_user)):
            raise ValueError(f"a pass cannot cost {self.fixed} s + {self.per_user} s a user")
        if not (np.isfinite(self.per_token) and self.per_token >= 0):
            raise ValueError(f"a drafted token cannot cost {self.per_token} s")
        if self.fixed + self.per_user <= 0:
            raise ValueError("a pass over one user must take time")

    def seconds(self, users: ArrayLike, tokens: ArrayLike) -> Floats:
        """Seconds of a pass over so many users and drafted tokens in all."""
        return self.fixed + self.per_user * np.asarray(users) + self.per_token * np.asarray(tokens)


@dataclass(frozen=True)
class Plan:
    """What a scheduler decides for one round.

    Attributes:
        lengths: Tokens that each user drafts, int64 `[..., k]`.
        shares: Shares of the band `[..., k]`; their sum is 1.
        in_turn: Users are served one after the other, each with its own pass of the target, rather
            than together; then every share is of the band during a user's turn.
        unsent: Tokens that devices draft beyond these lengths and do not send `[..., k]`, as one
            does that finds out by drafting that it is no longer sure; None for nothing.
    """

    lengths: Lengths
    shares: Floats
    in_turn: bool = False
    unsent: Lengths | None = None


@dataclass(frozen=True)
class RoundProblem:
    """What a scheduler knows before a round, of one group of users or of a batch of groups.

    Everything is broadcast to float64 of one shape: users last, groups before them.

    Args:
        draft_seconds: `T_k`, seconds per drafted token `[..., k]`, 0 or more.
        payload_bits: `Q_k`, bits sent per drafted token `[..., k]` (or one number), 0 or more.
        efficiency: `r_k`, bits a second per hertz `[..., k]`, above 0.
        acceptance: `a_k` in [0, 1] `[..., k]`, true or estimated.
        bandwidth: `B`, hertz `[...]` (or one number), above 0.
        verification: What a pass of the target costs.
        min_length: Shortest draft; 1 in the paper, 0 lets a user skip drafting.
        max_length: Longest draft.
        active: Who takes part `[..., k]`; all by default. Others draft, send and cost nothing.

    Raises:
        ValueError: A number is not possible, or the shapes do not fit.
    """

    draft_seconds: Floats
    payload_bits: Floats
    efficiency: Floats
    acceptance: Floats
    bandwidth: Floats
    verification: VerificationCost
    min_length: int = 0
    max_length: int = 25
    active: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        names = ("draft_seconds", "payload_bits", "efficiency", "acceptance")
        values = [np.asarray(getattr(self, name), dtype=np.float64) for name in names]
        active = np.asarray(True if self.active is None else self.active, dtype=bool)
        band = np.asarray(self.bandwidth, dtype=np.float64)
        shape = np.broadcast_shapes(*(v.shape for v in values), active.shape, (*band.shape, 1))
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, np.broadcast_to(value, shape))
        object.__setattr__(self, "active", np.broadcast_to(active, shape))
        object.__setattr__(self, "bandwidth", np.broadcast_to(band, shape[:-1]))
        self._check()

    def _check(self) -> None:
        possible = {
            "draft_seconds": self.draft_seconds >= 0,
            "payload_bits": self.payload_bits >= 0,
            "efficiency": self.efficiency > 0,
            "acceptance": (self.acceptance >= 0) & (self.acceptance <= 1),
            "bandwidth": self.bandwidth > 0,
        }
        for name, fine in possible.items():
            if not (np.all(fine) and np.all(np.isfinite(getattr(self, name)))):
                raise ValueError(f"{name} has impossible values: {getattr(self, name)}")
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(f"draft lengths from {self.min_length} to {self.max_length}")

    @property
    def taking_part(self) -> NDArray[np.bool_]:
        """Who takes part `[..., k]`."""
        assert self.active is not None  # __post_init__ has filled it
        return self.active

    @property
    def users(self) -> Lengths:
        """How many take part `[...]`."""
        return np.asarray(self.taking_part.sum(axis=-1))

    @property
    def shortest(self) -> Lengths:
        """Shortest draft of each user `[..., k]`; 0 of those who do not take part."""
        return np.where(self.taking_part, self.min_length, 0)

    @property
    def longest(self) -> Lengths:
        """Longest draft of each user `[..., k]`; 0 of those who do not take part."""
        return np.where(self.taking_part, self.max_length, 0)

    @property
    def sending_seconds(self) -> Floats:
        """Seconds that one drafted token takes on the whole band `[..., k]`, `Q / (r B)`."""
        return self.payload_bits / (self.efficiency * self.bandwidth[..., None])

    def equal_shares(self) -> Floats:
        """The band divided equally among those who take part `[..., k]`."""
        return self.taking_part / np.maximum(self.users, 1)[..., None]

    def fastest_shares(self, lengths: ArrayLike) -> tuple[Floats, Floats]:
        """Shares by Lemma 3 for these lengths `[..., k]`, and seconds until the last has sent."""
        drafted = np.asarray(lengths)
        return fastest_shares(drafted * self.draft_seconds, drafted * self.sending_seconds)

    def upload_range(self, part: float = 1.0) -> tuple[Floats, Floats]:
        """The least and the greatest time at which the last upload may end `[...]`, in seconds.

        Args:
            part: How much of the quickest user's token, alone on the band, is the least of all.
        """
        low, high = (self.fastest_shares(x)[1] for x in (self.shortest, self.longest))
        token = np.where(self.taking_part, self.draft_seconds + self.sending_seconds, np.inf)
        quickest = token.min(axis=-1)
        quickest = np.where(np.isfinite(quickest), part * quickest, 0.0)
        low = np.maximum(np.maximum(low, quickest), 1e-12)
        return low, np.maximum(high, low)

    def tokens(self, lengths: ArrayLike) -> Floats:
        """Expected tokens that a round commits for all users together `[...]` (equation 25)."""
        each = expected_tokens(self.acceptance, np.asarray(lengths))
        return np.asarray((self.taking_part * each).sum(axis=-1))

    def verification_seconds(self, lengths: ArrayLike) -> Floats:
        """Seconds of the batched pass of the target `[...]`."""
        return self.verification.seconds(self.users, np.asarray(lengths).sum(axis=-1))

    def seconds(self, plan: Plan) -> Floats:
        """Seconds of a round by this plan `[...]` (equation 16); of all turns if users take turns.

        Infinite where somebody drafts without a share of the band.
        """
        work = plan.lengths * self.draft_seconds
        sending = plan.lengths * self.sending_seconds
        if not plan.in_turn:
            access = access_seconds(work, sending, plan.shares)
            return access + self.verification_seconds(plan.lengths)
        each = access_seconds(work[..., None], sending[..., None], plan.shares[..., None])
        turns = each + self.verification.seconds(1, plan.lengths)
        return np.asarray((self.taking_part * turns).sum(axis=-1))

    def goodput(self, plan: Plan) -> Floats:
        """Expected tokens a second of all users together `[...]` (equation 13)."""
        return self.tokens(plan.lengths) / self.seconds(plan)

    def goodput_of_lengths(self, lengths: ArrayLike) -> Floats:
        """Goodput of these lengths with the shares that suit them best `[...]` (equation 33)."""
        _, access = self.fastest_shares(lengths)
        return self.tokens(lengths) / (access + self.verification_seconds(lengths))

    def with_acceptance(self, acceptance: ArrayLike) -> RoundProblem:
        """The same round with another belief about acceptance `[..., k]`."""
        return replace(self, acceptance=np.asarray(acceptance, dtype=np.float64))

    def as_batch(self) -> RoundProblem:
        """The same rounds with exactly one axis for the groups: `[n, k]`."""
        users = self.draft_seconds.shape[-1]
        return self._reshaped(lambda value, per_user: value.reshape((-1, users)[: 1 + per_user]))

    def with_candidates(self) -> RoundProblem:
        """The same rounds with an axis of length 1 before the users, for candidate lengths."""
        return self._reshaped(lambda value, per_user: np.expand_dims(value, -1 - per_user))

    def _reshaped(self, reshape: Callable[[NDArray[Any], int], NDArray[Any]]) -> RoundProblem:
        arrays: dict[str, Any] = {
            field.name: reshape(value, int(field.name != "bandwidth"))
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return replace(self, **arrays)


def nearest_lengths(numbers: ArrayLike, longest: int) -> Lengths:
    """Whole draft lengths from numbers in [-1, 1], -1 being 0 and 1 the longest: the nearest."""
    return np.rint((np.asarray(numbers, float) + 1) / 2 * longest).astype(np.int64)


def expected_tokens(acceptance: ArrayLike, lengths: ArrayLike) -> Floats:
    """Tokens that a round commits on average, the target's own token included (equation 12).

    `(1 - a^(L + 1)) / (1 - a)`, exact to rounding for every a in [0, 1]: `L + 1` at a = 1, and 1
    at a = 0.

    Args:
        acceptance: Chance that a drafted token is accepted.
        lengths: Drafted tokens, whole or not, 0 or more.
    """
    accept, drafted = np.asarray(acceptance, dtype=np.float64), np.asarray(lengths)
    reject = 1.0 - accept
    with np.errstate(divide="ignore"):  # log(0) at a = 0 is what it should be
        survive = (drafted + 1) * np.log1p(-reject)
    return np.where(reject > 0, -np.expm1(survive) / np.where(reject > 0, reject, 1), drafted + 1.0)
