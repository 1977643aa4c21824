"""Rules that stop a chain while it is drafted, as engines and papers have them.

One arm, whose last part is a chain of a drafter that goes on token by token; the token that stops
it is verified, too. Thresholds that were published are the defaults; those that are fastest on
texts of one's own are found by `python -m benchmarks.routers.stopping`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import DraftedToken, Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.watching import DRAFTED
from draftgym.policies.base import Policy

CONFIDENCE = 0.4
"""transformers' `assistant_confidence_threshold`."""
ENTROPY = 0.6
"""SVIP's: sqrt(0.15 * entropy) = 0.3."""


class StoppingPolicy(Policy):
    """Asked after every token of a chain whether it is the last one; a subclass writes `stops`.

    Args:
        arm: Whose last part is stopped.
        name: How tables call it.

    Raises:
        DraftgymError: That part is no chain.
    """

    observes = False
    watches = True

    def __init__(self, arm: Arm, name: str) -> None:
        if not arm.parts or arm.parts[-1].nodes is not None:
            raise DraftgymError(
                f"policy {name!r} stops a chain, and {arm} ends in none",
                "name a chain, as in svip@eagle3:8 or svip@suffix:16~0.7>eagle3:8",
            )
        self.name, self.arms = name, (arm,)

    @abstractmethod
    def stops(self, token: DraftedToken, accepted: int, state: Any) -> tuple[bool, Any]:
        """Whether a chain ends with a token, and what to remember of this text.

        Args:
            token: The token.
            accepted: Tokens that were accepted of the text's last chain.
            state: What was remembered; None at the first token of a text.
        """

    def check_drafter(self, drafters: Mapping[str, Drafter]) -> None:
        """Raises `DraftgymError` where the chain is of a drafter that draws all of it at once."""
        name = self.arms[0].parts[-1].drafter
        if not drafters[name].goes_on:
            one_by_one = [name for name, drafter in drafters.items() if drafter.goes_on]
            raise DraftgymError(
                f"policy {self.name!r} stops a chain of {name}, which drafts all of it at once",
                f"name a drafter that goes on token by token: {', '.join(one_by_one) or 'eagle3'}",
            )

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """The only arm, `count` times."""
        return np.zeros(count, dtype=np.int64)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """1 to stop or 0 to go on where a drafted token is observed, else the only arm."""
        if DRAFTED not in observation:
            return super().predict(observation, state, episode_start, deterministic)
        depth, logprob, entropy, accepted = observation[DRAFTED].tolist()
        token = DraftedToken(int(depth), logprob, entropy, observation["hidden"])
        found, state = self.stops(token, int(accepted), state)
        return int(found), state


class ConfidencePolicy(StoppingPolicy):
    """Stops at a token that is not likely: llama.cpp's `p_min`, transformers' fixed threshold.

    Args:
        arm: Whose last part is stopped.
        threshold: Least probability.
        name: How tables call it.
    """

    def __init__(self, arm: Arm, threshold: float = CONFIDENCE, name: str = "confidence") -> None:
        super().__init__(arm, name)
        self._least = log_probability(threshold, name)

    def stops(self, token: DraftedToken, accepted: int, state: Any) -> tuple[bool, Any]:
        """See `StoppingPolicy`."""
        return token.logprob < self._least, state


class SvipPolicy(StoppingPolicy):
    """Stops at a token whose distribution is wide (SVIP, arXiv 2411.18462).

    Args:
        arm: Whose last part is stopped.
        threshold: Most entropy, in nats.
        name: How tables call it.
    """

    def __init__(self, arm: Arm, threshold: float = ENTROPY, name: str = "svip") -> None:
        super().__init__(arm, name)
        if not (math.isfinite(threshold) and threshold >= 0):
            raise DraftgymError(
                f"policy {name!r} has an entropy of {threshold}",
                "give nats, 0 or more, as in svip:0.6",
            )
        self._most = threshold

    def stops(self, token: DraftedToken, accepted: int, state: Any) -> tuple[bool, Any]:
        """See `StoppingPolicy`."""
        return token.entropy > self._most, state


@dataclass
class _RocMemory:
    """What `RocPolicy` remembers of a text: its threshold, and the chain that is being drafted."""

    threshold: RocThreshold
    chain: list[float]


class RocPolicy(StoppingPolicy):
    """Stops at a token that is not likely, by a threshold that moves: transformers' default.

    Args:
        arm: Whose last part is stopped.
        threshold: Least probability, as every text begins.
        name: How tables call it.
    """

    def __init__(self, arm: Arm, threshold: float = CONFIDENCE, name: str = "roc") -> None:
        super().__init__(arm, name)
        self._least = log_probability(threshold, name)

    def stops(self, token: DraftedToken, accepted: int, state: Any) -> tuple[bool, Any]:
        """See `StoppingPolicy`."""
        now: _RocMemory = state or _RocMemory(RocThreshold(self._least), [])
        if token.depth == 1 and now.chain:
            now.threshold.add(now.chain, accepted)
            now.chain = []
        now.chain.append(token.logprob)
        return token.logprob < now.threshold.least, now


class RocThreshold:
    """The threshold of transformers' assisted generation, of any score that is larger if surer.

    Args:
        least: What it begins with.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self._scores: list[float] = []
        self._right: list[bool] = []

    def add(self, scores: Sequence[float], accepted: int) -> None:
        """Takes in a round.

        Args:
            scores: Of its drafted tokens. Those behind the first that is not accepted do not count.
            accepted: How many of the first are.
        """
        right = [True] * accepted + [False] * (accepted < len(scores))
        self._right += right
        self._scores += scores[: len(right)]
        if len(self._scores) > 5 and len(set(self._right)) == 2:
            self.least = self._cheapest()

    def _cheapest(self) -> float:
        """The score at which false positives + 3 * false negatives, both as shares, are fewest."""
        scores, right = np.array(self._scores), np.array(self._right)
        order = np.argsort(-scores, kind="stable")
        scores, found = scores[order], np.cumsum(right[order])
        ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
        found, passed = found[ends], ends + 1
        wrong = (passed - found) / (len(right) - right.sum())
        return float(scores[ends][np.argmin(wrong + 3 * (1 - found / right.sum()))])


def log_probability(least: float, name: str) -> float:
    """The logarithm of a threshold; raises `DraftgymError` where it is no probability above 0."""
    if not 0 < least <= 1:
        raise DraftgymError(
            f"policy {name!r} has a probability of {least}",
            "give one above 0 and up to 1, as in confidence:0.4 or roc:0.4",
        )
    return math.log(least)
