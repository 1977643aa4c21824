"""Policies that stop a chain while it is drafted: asked after every token whether it is the last.

The drafter's own view of that token is the observation, beside what became of the chain before:

    drafted  float32 [4]   depth, log-probability, entropy in nats, accepted of the last chain
    hidden   float32 [d]   the drafter's state (`DraftedToken.state`)

and the action is 0 to go on or 1 to stop. The token that stops a chain is verified with the others,
so that no verdict depends on a token that is then hidden from it, and the text keeps its law under
every rule. `predict` hands a state on from token to token, one per text, as Stable-Baselines3's
recurrent policies do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import DraftedToken
from draftgym.decoding.observers.observation import RouterObserver
from draftgym.decoding.round import RoundRecord

DRAFTED = "drafted"
"""Key of an observation of a drafted token."""


class WatchingObserver(RouterObserver):
    """Follows one session, and asks the policy after every token that an arm's last part drafts.

    Args:
        arms: Arms of the policy, in its order.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        super().__init__(arms)
        self._state: Any = None
        self._accepted = 0

    def arm(self, policy: Any, action: int) -> Arm:
        """The chosen arm, which asks the policy after every token."""
        arm = self.arms[action]

        def stop(token: DraftedToken) -> bool:
            told = [token.depth, token.logprob, token.entropy, self._accepted]
            seen = {DRAFTED: np.array(told, np.float32), "hidden": token.state}
            found, self._state = policy.predict(seen, self._state, deterministic=True)
            return bool(found)

        return arm.ending_in(replace(arm.parts[-1], stop=stop)) if arm.drafts else arm

    def update(self, action: int | None, record: RoundRecord) -> None:
        """Takes in what a round did; see `RouterObserver.update`."""
        super().update(action, record)
        if record.asked and record.asked[-1].arm.stop is not None and record.drafted:
            self._accepted = record.accepted
