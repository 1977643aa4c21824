"""Policies whose choice depends on the position alone, many of them replayed at once.

A threshold on the target's entropy, or on a prediction from its hidden state, chooses the same arm
at a position whatever came before. So a policy is a row of actions, one per row of all texts, and
hundreds of thresholds are replayed side by side.

Notation: v = policies, A = arms, R = rows of all texts, one per token
(`draftgym.rollouts.replay.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.latency import CostModel
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.traces.trace import TextTrace, TraceSet


@dataclass(frozen=True)
class Totals:
    """What some policies did with the same texts.

    Attributes:
        tokens: Tokens that rounds had to write, the same for each policy.
        seconds: What the rounds cost each policy, catching up included `[v]`.
        rounds: Rounds by policy and arm `[v, A]`.
    """

    tokens: int
    seconds: NDArray[np.float64]
    rounds: NDArray[np.int64]

    @property
    def speeds(self) -> NDArray[np.float64]:
        """Tokens per second, all texts together `[v]`."""
        return self.tokens / self.seconds

    @property
    def shares(self) -> NDArray[np.float64]:
        """Part of the rounds that each arm got `[v, A]`."""
        shares: NDArray[np.float64] = self.rounds / self.rounds.sum(1, keepdims=True)
        return shares


class Course:
    """Some texts that a fixed number of policies walk, again and again.

    Args:
        traces: The texts.
        arms: The arms, in the order that actions mean.
        policies: How many policies walk at once.
        cost_model: None takes the one that was measured with the traces.

    Raises:
        DraftgymError: An arm was not traced, or no text has a round to play.
    """

    def __init__(
        self,
        traces: TraceSet,
        arms: Sequence[Arm],
        policies: int = 1,
        cost_model: CostModel | None = None,
    ) -> None:
        texts = sum(len(text) > 0 for text in traces.texts)
        self._replay = Replay(traces, arms, policies * texts, cost_model)
        self._texts = np.tile(np.arange(texts), policies)
        self._policy = np.repeat(np.arange(policies), texts)
        self._policies = policies

    def rows(self, read: Callable[[TextTrace], NDArray[np.float32]]) -> NDArray[np.float32]:
        """What `read` says of each token of a text, for all texts behind each other `[R, ...]`."""
        return np.concatenate([read(text) for text in self._replay.texts])

    def walk(self, actions: NDArray[np.int64]) -> Totals:
        """Plays every text with every policy.

        Args:
            actions: What each policy chooses at each row `[v, R]`. A text's last row has no round.
        """
        replay, count = self._replay, len(self._texts)
        replay.start(np.arange(count), self._texts)
        seconds = np.zeros(self._policies)
        rounds = np.zeros((self._policies, len(replay.arms)), dtype=np.int64)
        going = np.ones(count, dtype=np.bool_)
        while going.any():
            chosen = actions[self._policy, replay.rows]
            played = replay.step(chosen)  # finished episodes stay where they are
            np.add.at(seconds, self._policy[going], played.seconds[going])
            np.add.at(rounds, (self._policy[going], chosen[going]), 1)
            going &= ~played.done
        tokens = sum(map(len, replay.texts))
        return Totals(tokens, seconds, rounds)


def walk_single_arms(
    traces: TraceSet, arms: Sequence[Arm], cost_model: CostModel | None = None
) -> Totals:
    """Every arm alone, as one policy each."""
    rows = sum(len(text.tokens) for text in traces.texts)
    actions = np.broadcast_to(np.arange(len(arms))[:, None], (len(arms), rows))
    return Course(traces, arms, len(arms), cost_model).walk(actions)
