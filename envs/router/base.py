"""What the router environments share: arms, spaces, reward, and the order of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsInt

import gymnasium as gym
import numpy as np

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observation import Observation
from draftgym.envs.router.reward import Reward, RoundReward
from draftgym.envs.router.spaces import router_spaces


class RoundsEnv(gym.Env[Observation, np.int64]):
    """An episode is a text, a step is a round.

    Args:
        arms: What can be chosen, in the order of the actions.
        question_ids: Names of the texts that episodes may have.
        hidden: Width of the target's hidden state.
        latency_price: See `RoundReward`.
        render_mode: `ansi` or None.

    Attributes:
        reward: What rounds are worth; assign another `Reward` to learn for another goal.
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it as an instance variable
        "render_modes": ["ansi"],
        "render_fps": 10,
    }

    def __init__(
        self,
        arms: Sequence[Arm],
        question_ids: Sequence[str],
        hidden: int,
        latency_price: float | str,
        render_mode: str | None,
    ) -> None:
        self.arms = tuple(arms)
        self.reward: Reward = RoundReward(latency_price)
        self.render_mode = render_mode
        spaces = router_spaces(self.arms, hidden)
        self.observation_space, self.action_space = spaces  # type: ignore[assignment]
        self._question_ids = list(question_ids)
        self._order: list[int] = []

    def _next_text(self, seed: int | None, options: dict[str, Any] | None) -> int:
        """Index of the text of a new episode; a seed also starts the order anew.

        Raises:
            DraftgymError: `options` ask for a prompt that there is not.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._order = []
        wanted = (options or {}).get("prompt")
        if wanted is not None:
            if str(wanted) not in self._question_ids:
                raise DraftgymError(
                    f"no prompt with question_id {wanted!r}",
                    "name one of the environment's prompts",
                )
            return self._question_ids.index(str(wanted))
        if not self._order:  # every text once, in a new order, before any comes again
            self._order = self.np_random.permutation(len(self._question_ids)).tolist()
        return int(self._order.pop())

    def _index_of(self, action: SupportsInt) -> int:
        """The action as a checked index into the arms."""
        index = int(action)
        if not self.action_space.contains(index):
            raise ValueError(f"action {action!r} is not one of the {len(self.arms)} arms")
        return index

    def _rewarded(self, index: int, committed: int, steps: float) -> float:
        """What a round with an arm is worth."""
        return float(self.reward(np.array([committed]), np.array([steps]), np.array([index]))[0])
