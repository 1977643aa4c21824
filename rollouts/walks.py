"""Rounds of policies whose choice depends on the position alone, many of them at once.

A threshold on the target's entropy, or on a prediction from its hidden state, chooses the same arm
at a position whatever came before. So a policy is a row of actions, one per position of all texts,
and hundreds of thresholds are replayed in the time of one.

Notation: N = positions of all texts, end to end; k = arms; v = policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoding.arms import Arm
from decoding.latency import CostModel
from decoding.observation import drafter_names
from rollouts.costs import backlogs, catch_up_table, contexts, round_seconds
from rollouts.trace import TraceSet


@dataclass(frozen=True)
class Totals:
    """What some policies did with the same texts.

    Attributes:
        tokens: Tokens that rounds had to write, the same for each policy.
        seconds: What the rounds cost each policy, catching up included `[v]`.
        rounds: Rounds by policy and arm `[v, k]`.
    """

    tokens: int
    seconds: NDArray[np.float64]
    rounds: NDArray[np.int64]

    @property
    def speeds(self) -> NDArray[np.float64]:
        """Tokens per second, all texts together `[v]`."""
        speeds: NDArray[np.float64] = self.tokens / self.seconds
        return speeds

    @property
    def shares(self) -> NDArray[np.float64]:
        """Part of the rounds that each arm got `[v, k]`."""
        shares: NDArray[np.float64] = self.rounds / self.rounds.sum(1, keepdims=True)
        return shares


class Course:
    """Some texts and arms, laid out for walking.

    Args:
        traces: The texts.
        arms: The arms, in the order that actions mean.
        model: What rounds cost; None takes the host's that collected the traces.

    Raises:
        DraftgymError: An arm was not traced.
    """

    def __init__(
        self, traces: TraceSet, arms: Sequence[Arm], model: CostModel | None = None
    ) -> None:
        traces.check_arms(arms)
        model = model or traces.origin.cost_model
        texts, names = traces.texts, drafter_names(arms)
        lengths = np.array([len(text) for text in texts])
        self._starts = np.cumsum(lengths) - lengths
        self._stops = self._starts + lengths
        self.arms = tuple(arms)
        self._drafter = np.array([names.index(a.drafter) if a.drafts else -1 for a in arms])
        self._context = np.concatenate([contexts(text) for text in texts])
        written = np.concatenate([np.arange(1, n + 1) for n in lengths])
        self._remaining = traces.origin.max_new_tokens - written
        self._committed = np.stack(
            [np.concatenate([text.committed(arm) for text in texts]) for arm in arms]
        )
        self._seconds = np.stack(
            [np.concatenate([round_seconds(model, text, arm) for text in texts]) for arm in arms]
        )
        longest = int(self._context.max(initial=0)) + 1
        tables = [catch_up_table(model, name, longest) for name in names]
        self._catch_up = np.stack(tables) if tables else np.zeros((0, 1))
        self._unused = np.array([traces.origin.lags[name] - 1 for name in names], dtype=np.int64)

    @property
    def positions(self) -> int:
        """N."""
        return int(self._committed.shape[1])

    def walk(self, actions: NDArray[np.int64]) -> Totals:
        """Plays every text with every policy.

        Args:
            actions: What each policy chooses at each position `[v, N]`.
        """
        count, texts = len(actions), len(self._starts)
        policy = np.repeat(np.arange(count), texts)
        place, stop = np.tile(self._starts, count), np.tile(self._stops, count)
        last_used = np.tile(self._unused, (len(place), 1))
        seconds = np.zeros(count)
        rounds = np.zeros((count, len(self.arms)), dtype=np.int64)
        going = np.flatnonzero(place < stop)
        while len(going):
            here, who = place[going], policy[going]
            chosen = actions[who, here]
            cost = self._seconds[chosen, here] + self._catch(going, chosen, here, last_used)
            np.add.at(seconds, who, cost)
            np.add.at(rounds, (who, chosen), 1)
            place[going] += self._committed[chosen, here]
            going = going[place[going] < stop[going]]
        return Totals(int((self._stops - self._starts).sum()), seconds, rounds)

    def _catch(
        self,
        going: NDArray[np.int64],
        chosen: NDArray[np.int64],
        here: NDArray[np.int64],
        last_used: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Seconds of catching up `[len(going)]`; notes in `last_used` who drafted where."""
        drafter = self._drafter[chosen]
        cost = np.zeros(len(going))
        rows = np.flatnonzero(drafter >= 0)
        walker, column, context = going[rows], drafter[rows], self._context[here[rows]]
        backlog = backlogs(context, last_used[walker, column], self._remaining[here[rows]])
        cost[rows] = self._catch_up[column, backlog]
        last_used[walker, column] = context
        return cost

    def single_arms(self) -> Totals:
        """Every arm alone, as one policy each."""
        each = np.arange(len(self.arms))[:, None]
        return self.walk(np.broadcast_to(each, (len(self.arms), self.positions)))
