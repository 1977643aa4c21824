"""Playing cells with whoever plans, and what it reaches.

`run_scheduler` plays many cells by the letter, shares and turns included; `SchedulerPolicy` plays a
Gymnasium environment through the same `predict` that learned policies have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftgym.agents.scheduler.workers import CellScheduler, CellWorker
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.cell import Cell, CellRound
from draftgym.envs.radio.channel import Generators
from draftgym.envs.scheduler.env import SchedulerEnv


@dataclass(frozen=True)
class Reached:
    """What a scheduler reached in n cells.

    Attributes:
        tokens: Committed tokens `[n]`.
        seconds: Time of all steps `[n]`, without idle times.
        round_goodput: Mean over steps of tokens per second of each `[n]`: the papers' figure, which
            hardly notices the rounds that take long.
        drafted: Verified draft tokens `[n]`.
        accepted: Those of them that were accepted `[n]`.
    """

    tokens: NDArray[np.int64]
    seconds: NDArray[np.float64]
    round_goodput: NDArray[np.float64]
    drafted: NDArray[np.int64]
    accepted: NDArray[np.int64]

    @property
    def goodput(self) -> NDArray[np.float64]:
        """Total tokens over total time `[n]`."""
        return self.tokens / self.seconds


def run_scheduler(
    spec: str, cell: Cell, rng: Generators, steps: int, min_length: int = 0
) -> Reached:
    """Resets the cells and plays some steps.

    Args:
        spec: See `CellScheduler`.
        cell: The cells.
        rng: See `Cell.reset`. The same seeds give every scheduler the same users and channels at
            the start; later ones depend on how time passes.
        steps: Steps of every cell.
        min_length: See `CellScheduler`.
    """
    return run_worker(lambda one: CellScheduler(spec, one, min_length), cell, rng, steps)


def run_worker(
    hire: Callable[[Cell], CellWorker], cell: Cell, rng: Generators, steps: int
) -> Reached:
    """The same for whoever plans; see `play_rounds`."""
    tokens, drafted, accepted = np.zeros((3, cell.count), dtype=np.int64)
    seconds, ratios = np.zeros((2, cell.count))
    for played in play_rounds(hire, cell, rng, steps):
        committed = played.committed.sum(-1)
        tokens += committed
        seconds += played.time.total
        ratios += committed / played.time.total
        drafted += played.drafted.sum(-1)
        accepted += committed - played.taken.sum(-1)
    return Reached(tokens, seconds, ratios / steps, drafted, accepted)


def play_rounds(
    hire: Callable[[Cell], CellWorker], cell: Cell, rng: Generators, steps: int
) -> Iterator[CellRound]:
    """Resets the cells and plays some steps, one after the other.

    Args:
        hire: Makes who plans, when the cells have been reset.
        cell: The cells.
        rng: See `run_scheduler`.
        steps: Steps of every cell.
    """
    cell.reset(rng)
    worker = hire(cell)
    for _ in range(steps):
        played = cell.step(worker.plan())
        worker.learn(played)
        yield played


class SchedulerPolicy:
    """A scheduler that plays a Gymnasium environment; a new one for every episode.

    `draftgym/Scheduler-v0` divides the band by its own rule, whatever the scheduler's shares;
    `draftgym/SchedulerShares-v0` takes them. Users in turn cannot be said by any action: use
    `run_scheduler`.

    Args:
        spec: See `CellScheduler`.
        env: The environment, unwrapped and reset.
        min_length: See `CellScheduler`.
    """

    def __init__(self, spec: str, env: SchedulerEnv, min_length: int = 0) -> None:
        self._env, self._worker = env, CellScheduler(spec, env.cell, min_length)
        self._planned = False

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], None]:
        """The action of the next step; what happened before is read from the environment.

        Args:
            observation: Not read: a scheduler states its problem itself.
            state: Not read.
            episode_start: Not read.
            deterministic: Schedulers always are.

        Raises:
            DraftgymError: The plan serves users in turn.
        """
        if self._planned:
            self._worker.learn(self._env.played)
        plan = self._worker.plan()
        if plan.in_turn:
            raise DraftgymError(
                "this scheduler serves users in turn, and no action says so",
                "play it with draftgym.agents.scheduler.play.run_scheduler",
            )
        self._planned = True
        return self._env.actions.actions(plan)[0], None
