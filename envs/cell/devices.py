"""Who drafts and who verifies, in seconds.

Devices draft a token at a time (arXiv 2606.04581, eq. 2). The server verifies all drafts of a batch
in one pass; its time is either the papers' affine law or what was measured on this host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.multispin.problem import VerificationCost


@dataclass(frozen=True)
class DeviceClass:
    """A kind of device.

    Attributes:
        name: What it is.
        seconds_per_token: Reference time of a drafted token.
        slowest, fastest: Factors on it; each device draws its own, uniformly in between.
    """

    name: str
    seconds_per_token: float
    fastest: float = 1.0
    slowest: float = 1.0

    def __post_init__(self) -> None:
        if not (self.seconds_per_token >= 0 and 0 < self.fastest <= self.slowest):
            raise ValueError(f"impossible speeds of a device: {self}")

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Seconds per drafted token of new devices."""
        return self.seconds_per_token * rng.uniform(self.fastest, self.slowest, shape)

    def slowed(self, factor: float) -> DeviceClass:
        """The same kind, so many times as slow.

        Raises:
            DraftgymError: An impossible factor.
        """
        if not 0 < factor < float("inf"):
            raise DraftgymError(f"devices that are {factor} times as slow", "give a number above 0")
        return replace(self, seconds_per_token=factor * self.seconds_per_token)


M4_PRO_TINYLLAMA = DeviceClass("Apple M4 Pro, TinyLlama-1.1B", 0.022, 0.85, 1.15)
"""2606.04581. The factors are the paper's; its mean time is not disclosed, and 22 ms is a *guess*,
calibrated to the goodput that it states."""
M4_PRO_QWEN35 = DeviceClass("Apple M4 Pro, Qwen3.5-0.8B", 0.033, 0.85, 1.15)
"""2606.04581; 33 ms is a *guess* of the same kind."""
A100_QWEN25 = DeviceClass("A100, Qwen2.5-0.5B", 0.0152, 1.0, 1.15)
"""2608.29618, Sec. VI-A2: 15.2 ms, measured on the server's own kind of GPU."""
A100_R1_QWEN = DeviceClass("A100, DeepSeek-R1-Distill-Qwen-1.5B", 0.0196, 1.0, 1.15)
"""2608.29618, Sec. VI-A2: 19.6 ms."""


PROMPT_LOOKUP = DeviceClass("prompt lookup, any device", 0.0)
"""Copying needs no network: about 0.1 ms for a whole draft in Python
(`draftgym.decoding.costs.calibration`), against 15 ms or more for each token of the papers'
language models."""
NO_NETWORK = {"ngram": PROMPT_LOOKUP, "suffix": PROMPT_LOOKUP}
"""Classes of devices, by drafter, that do not depend on the setting."""


def measured_device(costs: CostModel, drafter: str, factor: float = 1.0) -> DeviceClass:
    """A device that drafts as this host does, or `factor` times as slowly.

    Its time per token is that of the longest measured draft over its length: where drafting costs
    something before the first token, short drafts are dearer than that.

    Raises:
        DraftgymError: A drafter that was not measured, or an impossible factor.
    """
    if drafter not in costs.draft:
        known = ", ".join(costs.draft) or "none"
        raise DraftgymError(
            f"the cost model knows no drafter {drafter!r}", f"use one that it knows: {known}"
        )
    curve = costs.draft[drafter]
    seconds = curve.seconds[-1] / curve.at[-1]
    return DeviceClass(f"this host x {factor:g}, {drafter}", seconds).slowed(factor)


class Server(Protocol):
    """Whoever verifies batches."""

    def seconds(
        self,
        drafted: NDArray[np.int64],
        contexts: NDArray[np.int64],
        present: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Time of one pass per environment; none where nobody is present.

        Args:
            drafted: Tokens to verify of each user `[..., K]`; the pass has one row more.
            contexts: Positions in the target's cache `[..., K]`.
            present: Who is in the batch `[..., K]`; of others nothing is read.

        Returns:
            Seconds `[...]`.
        """

    def affine(self) -> VerificationCost:
        """The law in users and drafted tokens that is closest: what closed forms reckon with."""


@dataclass(frozen=True)
class AffineServer:
    """`fixed + n * each` for a batch of n drafts (2606.04581 eq. 7, 2608.29618 eq. 16).

    The law knows neither draft lengths nor contexts.

    Attributes:
        fixed: Seconds of a pass.
        each: Seconds of a draft.
    """

    fixed: float
    each: float

    def seconds(
        self,
        drafted: NDArray[np.int64],
        contexts: NDArray[np.int64],
        present: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Time of one pass per environment; see `Server`."""
        users = np.asarray(present).sum(-1)
        return np.where(users > 0, self.fixed + users * self.each, 0.0)

    def affine(self) -> VerificationCost:
        """The law itself."""
        return VerificationCost(self.fixed, self.each)


A100_LLAMA2_7B = AffineServer(0.02268, 0.01272)
"""2606.04581, Fig. 5a: fitted over 1 to 16 drafts; the paper's 20 and 24 users extrapolate. Which
figure is the fixed one is our reading of the axes, as it is for the next."""
A100_QWEN35_27B = AffineServer(0.07507, 0.01978)
"""2606.04581, Fig. 5b."""
A100_QWEN25_14B = AffineServer(0.0428, 0.0076)
"""2608.29618, Sec. VI-A2."""
A100_R1_QWEN_32B = AffineServer(0.0693, 0.0091)
"""2608.29618, Sec. VI-A2."""


@dataclass(frozen=True)
class MeasuredServer:
    """A server that verifies as this host does.

    Attributes:
        cost: What batches cost here (`draftgym.decoding.costs.batch_cost.measure_batches`).
        factor: How many times as slow it is.
    """

    cost: BatchCost
    factor: float = 1.0

    def seconds(
        self,
        drafted: NDArray[np.int64],
        contexts: NDArray[np.int64],
        present: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Time of one pass per environment; see `Server`.

        Raises:
            DraftgymError: More users, or more rows of a user, than were measured.
        """
        present = np.asarray(present)
        users = present.sum(-1)
        some = np.maximum(users, 1)
        rows = np.where(present, np.asarray(drafted) + 1, 0).sum(-1)
        context = np.where(present, contexts, 0).sum(-1) / some
        cost = self.cost(some, np.maximum(rows, some), context)
        return np.where(users > 0, self.factor * cost, 0.0)

    def affine(self) -> VerificationCost:
        """Least squares over all that was measured; no part of it is negative."""
        measured = np.array(self.cost.seconds)  # [C, U, R]
        users, rows = np.meshgrid(self.cost.users, self.cost.rows_each, indexing="ij")
        columns = np.stack([np.ones(users.shape), users, users * (rows - 1)], -1).reshape(-1, 3)
        fit = np.linalg.lstsq(columns, measured.mean(0).ravel(), rcond=None)[0]
        fixed, each, token = self.factor * np.maximum(fit, 0.0)
        return VerificationCost(float(fixed), float(each), float(token))
