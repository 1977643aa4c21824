"""What the router environments share: spaces, reward, checks, and the order of the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsInt

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from draftgym.decoding.arms import Arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import Observation, signal_names
from draftgym.decoding.observers.two_stage import two_stage_names
from draftgym.envs.options import check_options, never_begun
from draftgym.envs.reward import Reward, RoundReward, restart


class RoundsEnv(gym.Env[Observation, np.int64]):
    """An episode is a text, a step is a round.

    Args:
        arms: What can be chosen, in the order of the actions.
        question_ids: Names of the texts that episodes may have.
        hidden: Width of the target's hidden state.
        latency_price: See `RoundReward`.
        render_mode: `ansi` or None.
        levels: What a second decision chooses from, if there is one.

    Attributes:
        reward: What rounds are worth; assign another `Reward` to learn for another goal. A seeded
            reset restarts it (`draftgym.envs.reward.restart`).
        running: Whether a step may follow.

    Raises:
        DraftgymError: There is no text, or the price is neither a number nor `goodput`.
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
        levels: Sequence[float] = (),
    ) -> None:
        self.arms = tuple(arms)
        self._actions = max(len(self.arms), len(levels))
        self.reward: Reward = RoundReward(latency_price)
        self.render_mode = render_mode
        spaces = router_spaces(self.arms, hidden, levels)
        self.observation_space, self.action_space = spaces  # type: ignore[assignment]
        self._order = TextOrder(question_ids)
        self.running = False

    def _next_text(self, seed: int | None, options: Mapping[str, Any], *known: str) -> int:
        """Index of the text of a new episode; a seed also starts order and reward anew.

        Args:
            seed: See `reset`.
            options: See `reset`.
            known: Which there are.

        Raises:
            DraftgymError: `options` ask for a prompt that there is not, or for something else.
        """
        check_options(options, *known)
        super().reset(seed=seed)
        self.running = False
        if seed is not None:
            self._order.restart()
            restart(self.reward)
        return self._order.next(self.np_random, options)

    def _index_of(self, action: SupportsInt) -> int:
        """The action of a step as a checked index into the arms.

        Raises:
            DraftgymError: It is no such index, or no episode is running.
        """
        if not self.running:
            raise never_begun()
        if not self.action_space.contains(np.asarray(action)[()]):
            raise DraftgymError(
                f"action {action!r} is not one of the {self._actions} arms",
                f"give an index from 0 to {self._actions - 1}",
            )
        return int(action)

    def _rewarded(self, index: int, committed: int, steps: float) -> float:
        """What a round with an arm is worth."""
        return float(self.reward(np.array([committed]), np.array([steps]), np.array([index]))[0])


class TextOrder:
    """Deals texts: every one once, in a random order, before any comes again.

    Args:
        names: Question ids of the texts.
        shared: Whether all episodes of a vector environment are dealt from it (then a shuffled
            order is read from its beginning, else from its end).

    Raises:
        DraftgymError: There is none.
    """

    def __init__(self, names: Sequence[str], shared: bool = False) -> None:
        if not names:
            raise DraftgymError("there is no prompt to play", "give one at least")
        self.names, self.shared = list(names), shared
        self.restart()

    def restart(self) -> None:
        """Forgets which texts were dealt."""
        self._rest: list[int] = []

    def next(self, rng: np.random.Generator, options: Mapping[str, Any]) -> int:
        """Index of the next text, or of the one that `options` name as `prompt`.

        Raises:
            DraftgymError: There is no such text.
        """
        wanted = options.get("prompt")
        if wanted is not None:
            if str(wanted) not in self.names:
                raise DraftgymError(
                    f"no prompt with question_id {wanted!r}",
                    "name one of the environment's prompts; traced texts of a single token have no "
                    "round and are left out",
                )
            return self.names.index(str(wanted))
        if not self._rest:
            order = rng.permutation(len(self.names)).tolist()
            self._rest = order[::-1] if self.shared else order
        return int(self._rest.pop())


def router_spaces(
    arms: Sequence[Arm], hidden: int, levels: Sequence[float] = ()
) -> tuple[spaces.Dict, spaces.Discrete]:
    """Observation and action space of every router environment.

    Args:
        arms: What can be chosen.
        hidden: Width of the target's hidden state, d.
        levels: What a second decision chooses from, if there is one.
    """
    names = two_stage_names(arms) if levels else signal_names(arms)
    observation: dict[str, spaces.Space[Any]] = {
        "signals": spaces.Box(0.0, np.inf, (len(names),), np.float32),
        "hidden": spaces.Box(-np.inf, np.inf, (hidden,), np.float32),
    }
    return spaces.Dict(observation), spaces.Discrete(max(len(arms), len(levels)))
