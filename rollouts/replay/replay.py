"""Replaying traces: the rounds of real decoding, many episodes at once, without a model.

An episode is a text; its state is a position and what the router did before. Every step is a few
array operations over all episodes, so that a laptop plays a hundred thousand rounds a second. What
is committed, how much, and what is observed are those of live decoding (a test steps both side by
side); the time of a round is the cost model's.

Notation: n = episodes, A = arms, D = drafters, R = rows of all texts, one per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.cost_model import CostModel, note_extrapolation
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import (
    TEXT_SIGNALS,
    Observation,
    RouterMemory,
    drafter_names,
)
from draftgym.rollouts.replay.pricing import (
    backlogs,
    catch_up_table,
    round_seconds,
    worked,
)
from draftgym.rollouts.traces.joint import made_by
from draftgym.rollouts.traces.mapped import Room
from draftgym.rollouts.traces.trace import TextTrace, TraceSet


@dataclass(frozen=True)
class ReplayedRound:
    """What a round of every episode did.

    Attributes:
        committed: Tokens committed `[n]`.
        seconds: Cost of the round, catching up included `[n]`.
        steps: The same in target steps `[n]`.
        done: Whether the text is finished `[n]`.
        arms: What was chosen, as indices into `Replay.choices` `[n]`.
        played: Whether a round was played at all, or a decision is left `[n]`.
    """

    committed: NDArray[np.int64]
    seconds: NDArray[np.float64]
    steps: NDArray[np.float64]
    done: NDArray[np.bool_]
    arms: NDArray[np.int64]
    played: NDArray[np.bool_]


class Replay:
    """Episodes over traces, stepped together.

    Args:
        traces: The texts; those of a single token have no round and are left out.
        arms: What can be chosen, all of them traced (or drafting nothing).
        count: Episodes.
        cost_model: What rounds cost; None takes the one that was measured with the traces.

    Raises:
        DraftgymError: An arm was not traced, or no text has a round to play.
    """

    def __init__(
        self,
        traces: TraceSet,
        arms: Sequence[Arm],
        count: int = 1,
        cost_model: CostModel | None = None,
    ) -> None:
        traces.check_arms(arms)
        self.arms, self.count = tuple(arms), count
        self.texts = [text for text in traces.texts if len(text)]
        if not self.texts:
            raise DraftgymError(
                "no text of these traces has a round to play",
                "trace prompts that the target answers at length, with --max-new-tokens 2 or more",
            )
        self._lay_out(traces, cost_model or traces.origin.cost_model)
        self.memory = RouterMemory(arms, count)
        self.text_of = np.zeros(count, dtype=np.int64)
        self._row = np.zeros(count, dtype=np.int64)
        self._last_used = np.zeros((count, len(self._lags)), dtype=np.int64)
        self.start(np.arange(count), np.arange(count) % len(self.texts))

    def start(self, episodes: NDArray[np.int64], texts: NDArray[np.int64]) -> None:
        """Begins these episodes (indices) anew, with these texts (indices)."""
        self.text_of[episodes] = texts
        self._row[episodes] = self._first[texts]
        self._last_used[episodes] = self._lags - 1
        self.memory.forget(episodes)

    def keep(self, episodes: NDArray[np.int64]) -> None:
        """Goes on with these episodes (indices) alone."""
        self.count = len(episodes)
        self.text_of, self._row = self.text_of[episodes], self._row[episodes]
        self._last_used = self._last_used[episodes]
        self.memory.keep(episodes)

    def snapshot(self) -> dict[str, Any]:
        """Where the episodes stand, to be kept; texts are left out."""
        return {name: getattr(self, name) for name in ("text_of", "_row", "_last_used", "memory")}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Puts the episodes where these of the same texts and arms stood."""
        vars(self).update(snapshot)

    def observe(self, episodes: NDArray[np.int64] | None = None) -> Observation:
        """What a router may know: `signals [n, s]` and `hidden [n, d]`, float32.

        Args:
            episodes: Of which episodes (indices); None for all.
        """
        row, signals = self._row, self._observed()
        if episodes is not None:
            signals, row = signals[episodes], row[episodes]
        texts = self.text_of if episodes is None else self.text_of[episodes]
        places = row - self._first[texts]
        hidden = np.empty((len(row), self.texts[0].hidden.shape[1]), np.float32)
        for index, (text, place) in enumerate(zip(texts.tolist(), places.tolist(), strict=True)):
            hidden[index] = self.texts[text].hidden[place]  # most of a trace; it is never copied
        return {"signals": signals, "hidden": hidden}

    @property
    def choices(self) -> tuple[Arm, ...]:
        """The arms that actions mean."""
        return self.arms

    @property
    def rows(self) -> NDArray[np.int64]:
        """Where the episodes stand, among the rows of all `texts` `[n]`."""
        return self._row

    def options(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What a round with each arm would commit and cost here `[n, A]`, catching up included."""
        row = self._row
        committed = self._committed[:, row].T.astype(np.int64)
        seconds = self._seconds[:, row].T
        each = self._catching_up(row)  # [n, D]
        return committed, seconds + np.einsum("nd,and->na", each, self._asked[:, row])

    def step(self, actions: NDArray[np.int64]) -> ReplayedRound:
        """Plays a round of every episode; finished ones must be started again afterwards."""
        return self._play(actions, actions, np.ones(self.count, dtype=np.bool_))

    def _play(
        self, actions: NDArray[np.int64], chosen: NDArray[np.int64], played: NDArray[np.bool_]
    ) -> ReplayedRound:
        """Plays a round of some episodes.

        Args:
            actions: Arms of this replay `[n]`.
            chosen: What they are to the memory `[n]`.
            played: Which episodes play `[n]`.
        """
        row, context = self._row, self._context[self._row]
        committed = np.where(played, self._committed[actions, row], 0).astype(np.int64)
        asked, verified = self._asked[actions, row], self._verified[actions, row]
        catching_up = np.where(asked, self._catching_up(row), 0.0).sum(1)
        seconds = np.where(played, self._seconds[actions, row] + catching_up, 0.0)
        np.copyto(self._last_used, context[:, None], where=asked & played[:, None])
        steps = seconds / self._step_seconds[row]
        self.memory.update(chosen, committed, context, asked, verified, played)
        self._row = row + committed
        done = self._row == self._last[self.text_of]
        return ReplayedRound(committed, seconds, steps, done, chosen, played)

    def _observed(self) -> NDArray[np.float32]:
        """`signals` of all episodes `[n, s]`."""
        row = self._row
        share = self._remaining[row] / self._limit
        return self.memory.signals(self._signals[row], self._context[row], share)

    def _catching_up(self, row: NDArray[np.int64]) -> NDArray[np.float64]:
        """What it would cost to catch each drafter up where the episodes stand `[n, D]`."""
        remaining = self._remaining[row, None]
        waited = backlogs(self._context[row, None], self._last_used, remaining)
        return self._tables[np.arange(len(self._tables)), waited]

    def _lay_out(self, traces: TraceSet, model: CostModel) -> None:
        """Puts all texts behind each other, in memory or on disk."""
        texts, names, room = self.texts, drafter_names(self.arms), Room(traces.scratch)
        sizes = np.array([len(text) + 1 for text in texts])
        self._last = sizes.cumsum() - 1
        self._first = self._last + 1 - sizes
        rows, arms = int(sizes.sum()), len(self.arms)
        self._limit = traces.origin.max_new_tokens
        self._context, self._remaining = room((rows,), np.int64), room((rows,), np.int64)
        self._signals = room((rows, len(TEXT_SIGNALS)), np.float32)
        self._step_seconds = room((rows,), np.float64)
        self._committed = room((arms, rows), np.int16)
        self._seconds = room((arms, rows), np.float64)
        self._asked = room((arms, rows, len(names)), np.bool_)
        self._verified = room((arms, rows, len(names)), np.bool_)
        longest = max(text.prompt_tokens + len(text) for text in texts) + 1
        steps = np.array([model.step_seconds(context) for context in range(longest)])
        for text, first, last in zip(texts, self._first.tolist(), self._last.tolist(), strict=True):
            self._lay(text, slice(first, last), names, model)
            self._step_seconds[first:last] = steps[self._context[first:last]]
        self._step_seconds[self._last] = 1.0
        self._lags = np.array([traces.origin.lags[name] for name in names], dtype=np.int64)
        note_extrapolation(model, longest)
        tables = [catch_up_table(model, name, longest) for name in names]
        self._tables = np.stack(tables) if tables else np.zeros((0, longest + 1))

    def _lay(self, text: TextTrace, rounds: slice, names: Sequence[str], model: CostModel) -> None:
        """Puts one text there; its last row, behind these, has no round."""
        whole = slice(rounds.start, rounds.stop + 1)
        position = np.arange(len(text) + 1)
        self._context[whole] = position + text.prompt_tokens
        self._remaining[whole] = self._limit - 1 - position
        # What nobody knows is 0 throughout; policies that read it are refused (`replay_for`).
        self._signals[whole] = np.nan_to_num(text.signals)
        for index, arm in enumerate(self.arms):
            self._committed[index, whole] = np.append(made_by(text, arm).committed, 0)
            self._seconds[index, whole] = np.append(round_seconds(model, text, arm), 0.0)
            asked, verified = worked(text, arm, names)
            self._asked[index, rounds], self._verified[index, rounds] = asked, verified
        self._asked[:, rounds.stop] = self._verified[:, rounds.stop] = False
