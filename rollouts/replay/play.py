"""Policies on traces: the rounds that they would play, with times of the cost model.

`play_policy` asks a policy each round. A threshold on the target's entropy, or on a prediction from
its hidden state, chooses the same arm at a position whatever came before: such a policy is a row of
actions, one per row of all texts, and `Course` walks hundreds of them side by side.

Notation: v = policies, A = arms, R = rows of all texts, one per token
(`draftgym.rollouts.replay.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.decoder import RoutingPolicy
from draftgym.decoding.given import check_policy
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.replay.two_stage import replay_for
from draftgym.rollouts.report.statistics import Work
from draftgym.rollouts.traces.trace import TextTrace, TraceSet


@dataclass(frozen=True)
class ReplayedText:
    """One text as a policy would write it.

    Attributes:
        question_id: Which prompt.
        category: Its category.
        tokens: Tokens that rounds commit (all but the first, which the prompt's pass gives).
        rounds: How many rounds.
        seconds: What they cost.
        steps: The same in target steps.
        chosen: Rounds by arm `[A]`.
    """

    question_id: str
    category: str
    tokens: int
    rounds: int
    seconds: float
    steps: float
    chosen: NDArray[np.int64]

    @property
    def work(self) -> Work:
        """Tokens and seconds, for ratios with intervals."""
        return Work(self.tokens, self.seconds)


def play_policy(
    traces: TraceSet,
    policy: RoutingPolicy,
    cost_model: CostModel | None = None,
    together: bool = True,
) -> list[ReplayedText]:
    """Plays every text once; the policy acts deterministically.

    Args:
        traces: The texts.
        policy: Who chooses; all its arms must be traced.
        cost_model: None takes the traces' own.
        together: Whether all texts are played side by side. One after the other is for policies
            that go on learning, as they would when they serve.

    Returns:
        One entry per text of `traces` that has a round to play, in their order.
    """
    check_policy(policy)
    texts = np.arange(sum(len(text) > 0 for text in traces.texts))
    replay = replay_for(policy, traces, len(texts) if together else 1, cost_model)
    if together:
        return _play(replay, policy, texts)
    return [one for text in texts for one in _play(replay, policy, np.array([text]))]


def _play(replay: Replay, policy: RoutingPolicy, texts: NDArray[np.int64]) -> list[ReplayedText]:
    count, arms = len(texts), len(replay.choices)
    seconds, steps = np.zeros(count), np.zeros(count)
    chosen = np.zeros((count, arms), dtype=np.int64)
    replay.start(np.arange(count), texts)
    playing, state = np.arange(count), None
    first = np.ones(count, dtype=np.bool_)
    while len(playing):
        actions, state = policy.predict(replay.observe(), state, first, deterministic=True)
        played = replay.step(actions)
        seconds[playing] += played.seconds
        steps[playing] += played.steps
        chosen[playing[played.played], played.arms[played.played]] += 1
        going = np.flatnonzero(~played.done)
        if len(going) < len(playing) and len(going):
            replay.keep(going)
        playing, first = playing[going], np.zeros(len(going), dtype=np.bool_)
    return [
        ReplayedText(
            text.question_id,
            text.category,
            len(text),
            int(chosen[index].sum()),
            float(seconds[index]),
            float(steps[index]),
            chosen[index],
        )
        for index, text in enumerate(replay.texts[int(i)] for i in texts)
    ]


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
