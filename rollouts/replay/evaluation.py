"""Policies on traces: the rounds that they would play, with times of the cost model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.costs.latency import CostModel
from draftgym.decoding.decoder import RoutingPolicy
from draftgym.rollouts.replay.replay import Replay
from draftgym.rollouts.report.statistics import Work
from draftgym.rollouts.traces.trace import TraceSet


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
    replay = Replay(traces, policy.arms, 1, cost_model)
    texts = np.arange(len(replay.texts))
    if together:
        return _play(Replay(traces, policy.arms, len(texts), cost_model), policy, texts)
    return [one for text in texts for one in _play(replay, policy, np.array([text]))]


def _play(replay: Replay, policy: RoutingPolicy, texts: NDArray[np.int64]) -> list[ReplayedText]:
    count, arms = len(texts), len(replay.arms)
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
        chosen[playing, actions] += 1
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
