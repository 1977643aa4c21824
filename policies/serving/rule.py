"""What a rule for a server's batch is: told of the batch before a round, and of the round after it.

    arms = rule.choose(batch)  ->  round  ->  rule.learn(batch, arms, outcome)

Rules that set draft lengths read a *ladder*: an arm for every length. With a cascade in front
(`ngram:8@3>eagle3:4`), the same rule sets the length of those whose lookup has nothing to offer.

Notation: n = servers, K = places of a batch, D = drafters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import PLAIN, Arm, Cascade
from draftgym.decoding.errors import DraftgymError

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """What is known of a batch before a round.

    Attributes:
        deciding: Whose arms are read `[n, K]`.
        cached: Cached positions of them `[n]`.
        copies: How many identical requests each of them stands for.
    """

    deciding: Mask
    cached: Ints
    copies: int = 1

    @property
    def size(self) -> Ints:
        """Requests that are being written `[n]`."""
        return np.asarray(self.copies * self.deciding.sum(-1))


@dataclass(frozen=True)
class Outcome:
    """What a round did.

    Attributes:
        drafted: Tokens that were verified `[n, K]`.
        accepted: How many of them were accepted `[n, K]`.
        verified: Whose proposals these were `[n, K, D]`.
    """

    drafted: Ints
    accepted: Ints
    verified: Mask


class ServingRule(ABC):
    """Chooses the arms of batches, each server's by what happened on it alone.

    Attributes:
        name: How tables call it.
        arms: What it chooses from; an action is an index into this.
    """

    name: str
    arms: tuple[Arm, ...]

    def begin(self, servers: int) -> None:
        """Forgets everything, for so many servers; rules that remember nothing need not."""
        del servers

    @abstractmethod
    def choose(self, batch: Batch) -> Ints:
        """Arms `[n, K]`; those of who does not decide are not read."""

    def learn(self, batch: Batch, arms: Ints, outcome: Outcome) -> None:
        """Takes a round in; rules that learn nothing need not.

        Args:
            batch: It before the round.
            arms: What was chosen `[n, K]`.
            outcome: What it did.
        """
        del batch, arms, outcome


class FixedRule(ServingRule):
    """One arm for everybody.

    Args:
        arm: It.
    """

    def __init__(self, arm: Arm) -> None:
        self.arms, self.name = (arm,), str(arm)

    def choose(self, batch: Batch) -> Ints:
        """See `ServingRule`."""
        return np.zeros(batch.deciding.shape, np.int64)


@dataclass(frozen=True)
class Ladder:
    """An arm for every draft length.

    Attributes:
        drafter: Whose length it is.
        arms: The arms, by length, ascending; 0 is the first.
    """

    drafter: str
    arms: Mapping[int, Arm]

    @classmethod
    def of(cls, drafter: str, lengths: Iterable[int], first: Arm | None = None) -> Ladder:
        """Chains of a drafter, behind a lookup if one is given.

        Args:
            drafter: Whose chains.
            lengths: Tokens of each; 0 is added.
            first: What the cascade asks before.
        """
        nothing = Arm(PLAIN, 0) if first is None else first
        arms = {0: nothing}
        for length in sorted(set(lengths) - {0}):
            chain = Arm(drafter, length)
            arms[length] = chain if first is None else Cascade.of([first, chain])
        return cls(drafter, arms)

    @property
    def lengths(self) -> Ints:
        """Its lengths, ascending."""
        return np.array(list(self.arms))

    def index(self, lengths: Ints | int) -> Ints:
        """Which arm has the longest draft that is not longer than asked for, any shape."""
        return np.asarray(np.searchsorted(self.lengths, lengths, side="right") - 1)

    def require(self, lengths: Sequence[int]) -> None:
        """Raises `DraftgymError` for a length that is none of its arms'."""
        for length in lengths:
            if length not in self.arms:
                raise DraftgymError(
                    f"a draft length of {length}",
                    f"use one of {', '.join(map(str, self.arms))}, or trace more arms",
                )
