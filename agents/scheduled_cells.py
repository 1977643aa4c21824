"""Schedulers in cells: Multi-SPIN's and trained ones, and what they reach.

A scheduler (`policies.multispin`) plans with its own belief about acceptance. `CellScheduler` tells
it what happens in a cell and asks it for plans, `LearnedCellScheduler` does so with a trained
policy; `run_scheduler` plays many cells by the letter, shares and turns included; `SchedulerPolicy`
plays a Gymnasium environment through the same `predict` that learned policies have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decoding.errors import DraftgymError
from decoding.multiuser import Plan
from envs.cell import Cell
from envs.cell_round import CellRound
from envs.fading import Generators
from envs.scheduler import SchedulerEnv
from envs.scheduler_actions import (
    Actions,
    BeliefActions,
    LengthActions,
    RelaxedLengthActions,
    ShareActions,
)
from envs.scheduler_observation import CELL_FEATURES, USER_FEATURES, observe_cell
from policies.learned_scheduler import BELIEFS, LENGTHS, RELAXED, SHARES, LearnedScheduler
from policies.multispin.schedulers import Scheduler, make_scheduler

ACTIONS: dict[str, type[Actions]] = {
    BELIEFS: BeliefActions,
    LENGTHS: LengthActions,
    RELAXED: RelaxedLengthActions,
    SHARES: ShareActions,
}
"""How the answers of trained schedulers become plans."""


class CellWorker(Protocol):
    """Who plans the steps of n cells."""

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""

    def learn(self, played: CellRound) -> None:
        """Is told how a step of the cells went."""


def replayable_scheduler(spec: str, means: Sequence[float]) -> Scheduler:
    """A scheduler that can play traces; see `policies.multispin.schedulers.make_scheduler`.

    Raises:
        DraftgymError: No such scheduler, or one that ends drafts by the drafter's entropy.
    """
    scheduler = make_scheduler(spec, means)
    if scheduler.early_exit is not None:
        raise DraftgymError(
            f"scheduler {spec!r} ends drafts by the drafter's entropy, which traces lack",
            "choose another scheduler for replayed cells",
        )
    return scheduler


class CellScheduler:
    """A scheduler at work in n cells.

    Within a window a plan is for those who decide, as if they had their part of the band; the band
    is then divided by the optimal rule, since plans say nothing of uploads under way.

    Args:
        spec: `rule` or `rule@belief`, as `policies.multispin.schedulers.make_scheduler` reads it.
            The belief `given` knows each prompt's likeliest constant acceptance: an oracle of the
            model.
        cell: The cells, reset before.
        min_length: Shortest draft that it may plan; 1 in the paper, 0 lets a user skip drafting.

    Raises:
        DraftgymError: No such scheduler, or one that ends drafts by the drafter's entropy.
    """

    def __init__(self, spec: str, cell: Cell, min_length: int = 0) -> None:
        self.scheduler = replayable_scheduler(spec, cell.means.tolist())
        self.cell, self._min_length = cell, min_length
        self.scheduler.begin(cell.users.active, cell.users.task, cell.users.active)

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""
        plan = self.scheduler.plan(self.cell.problem(self._min_length))
        lengths = np.where(self.cell.deciding, plan.lengths, 0)
        if self.cell.settings.window is not None:
            return self.cell.best_plan(lengths)
        return Plan(lengths, np.asarray(plan.shares), plan.in_turn)

    def learn(self, played: CellRound) -> None:
        """Tells the scheduler how a step of the cell went."""
        accepted = np.where(played.taken, played.committed - 1, 0)
        self.scheduler.update(played.drafted, accepted)
        turnover = played.turnover
        self.scheduler.begin(turnover.began, self.cell.users.task, turnover.newcomers)


class LearnedCellScheduler:
    """A trained scheduler at work in n cells.

    Args:
        policy: The policy.
        cell: The cells, reset before.

    Raises:
        DraftgymError: It knows another longest draft, or reads other observations.
    """

    def __init__(self, policy: LearnedScheduler, cell: Cell) -> None:
        head = policy.head
        if head.longest != cell.longest:
            raise DraftgymError(
                f"scheduler {policy.name!r} drafts up to {head.longest} tokens, "
                f"these cells up to {cell.longest}",
                f"play cells with longest_draft {head.longest}, or train another scheduler",
            )
        if (head.user_features, head.cell_features) != (USER_FEATURES, CELL_FEATURES):
            raise DraftgymError(
                f"scheduler {policy.name!r} reads observations that this version lacks",
                "train it again",
            )
        self.policy, self.cell = policy, cell
        self._actions = ACTIONS[head.kind](cell.settings.users, cell.longest)

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""
        actions, _ = self.policy.predict(observe_cell(self.cell))
        return self._actions.plan(self.cell, actions)

    def learn(self, played: CellRound) -> None:
        """Nothing: all that it knows is in the observations."""


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
                "play it with agents.scheduled_cells.run_scheduler",
            )
        self._planned = True
        return self._env.actions.actions(plan)[0], None
