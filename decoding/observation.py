"""What a router may know before it chooses: cheap facts of the session, no drafter call.

The environment and the deployed decoder build observations with this one class, so a policy meets
in deployment exactly what it met in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decoding.arms import Arm
from decoding.round import RoundRecord
from decoding.session import Session

Observation = dict[str, NDArray[np.float32]]

TARGET_SIGNALS = ("entropy", "margin", "top1", "context", "remaining", "last_committed")
ACCEPTANCE_DECAY = 0.8
"""Weight of the past in the running acceptance of a drafter."""


def drafter_names(arms: Sequence[Arm]) -> list[str]:
    """Drafters that the arms use, in order of first appearance."""
    return list(dict.fromkeys(arm.drafter for arm in arms if arm.drafts))


def signal_names(arms: Sequence[Arm]) -> list[str]:
    """Name of each entry of `signals`, in order."""
    names = list(TARGET_SIGNALS)
    for drafter in drafter_names(arms):
        names += [f"acceptance_{drafter}", f"backlog_{drafter}"]
    return names + [f"last_arm_{arm}" for arm in arms]


class RouterObserver:
    """Follows one session and describes it.

    Args:
        arms: Arms of the policy, in its order.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = tuple(arms)
        self.drafters = drafter_names(arms)
        self._acceptance = dict.fromkeys(self.drafters, 1.0)
        self._last_arm: int | None = None
        self._last_committed = 1
        self._covered = dict.fromkeys(self.drafters, 0)

    def update(self, action: int, record: RoundRecord) -> None:
        """Takes in what a round did."""
        self._last_arm = action
        self._last_committed = len(record.committed)
        if record.arm.drafter in self._acceptance:
            name = record.arm.drafter
            past = self._acceptance[name]
            fresh = (1 - ACCEPTANCE_DECAY) * record.accepted
            self._acceptance[name] = ACCEPTANCE_DECAY * past + fresh
            self._covered[name] = record.context

    def observe(self, session: Session) -> Observation:
        """The observation at the session's current position.

        Returns:
            `signals`: float32 `[len(signal_names(arms))]`, every entry roughly within 0 to 4;
            `hidden`: the target's last hidden state, float32 `[d]`.
        """
        target = session.signals()
        signals = [
            target.entropy,
            target.margin,
            target.top1,
            math.log1p(session.cache.length) / 4,
            session.remaining / session.max_new_tokens,
            self._last_committed / 4,
        ]
        for name in self.drafters:
            backlog = session.cache.length - self._covered[name]
            signals += [self._acceptance[name], math.log1p(backlog) / 4]
        signals += [float(self._last_arm == index) for index in range(len(self.arms))]
        return {
            "signals": np.asarray(signals, dtype=np.float32),
            "hidden": session.last_hidden.float().numpy(),
        }
