"""Schedulers in cells: Multi-SPIN's and trained ones, and what they reach.

A scheduler (`policies.multispin`) plans with its own belief about acceptance. `CellScheduler` tells
it what happens in a cell and asks it for plans, `LearnedCellScheduler` does so with a trained
policy; `run_scheduler` plays many cells by the letter, shares and turns included; `SchedulerPolicy`
plays a Gymnasium environment through the same `predict` that learned policies have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decoding.errors import DraftgymError
from decoding.multiuser import Lengths, Plan, RoundProblem
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
from policies.multispin.curves import curve_plan
from policies.multispin.entropy_exit import EntropyExit
from policies.multispin.schedulers import make_scheduler
from rollouts.chains import ChainTable

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
        DraftgymError: No such scheduler.
    """

    def __init__(self, spec: str, cell: Cell, min_length: int = 0) -> None:
        self.scheduler = make_scheduler(spec, cell.means.tolist())
        self.cell, self._min_length = cell, min_length
        self.scheduler.begin(cell.users.active, cell.users.task, cell.users.active)

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""
        problem = self.cell.problem(self._min_length)
        plan = self.scheduler.plan(problem)
        lengths = np.where(self.cell.deciding, plan.lengths, 0)
        unsent = None
        if self.scheduler.early_exit is not None:
            drafted, sent = self._cut(self.scheduler.early_exit, lengths, problem)
            lengths, unsent = sent, drafted - sent
        shares = np.asarray(plan.shares)
        if self.cell.settings.window is not None:
            shares = self.cell.best_plan(lengths).shares
        return Plan(lengths, shares, plan.in_turn, unsent)

    def _cut(
        self, early_exit: EntropyExit, budget: Lengths, problem: RoundProblem
    ) -> tuple[Lengths, Lengths]:
        """What devices draft and send that stop where they are no longer sure.

        Traces have what the drafter thought of the tokens that it chose, so surprise stands for
        entropy, which is its mean.
        """
        users, table = self.cell.users, traced(self.cell, "ends drafts by the drafter's surprise")
        surprise = -table.logprobs[users.arm, users.row].astype(float)
        believed = self.scheduler.belief.estimate(problem.acceptance)
        return early_exit.lengths(budget, surprise, believed)

    def learn(self, played: CellRound) -> None:
        """Tells the scheduler how a step of the cell went."""
        accepted = np.where(played.taken, played.committed - 1, 0)
        self.scheduler.update(played.drafted, accepted)
        turnover = played.turnover
        self.scheduler.begin(turnover.began, self.cell.users.task, turnover.newcomers)


def traced(cell: Cell, why: str) -> ChainTable:
    """The traces that a cell plays.

    Raises:
        DraftgymError: It plays texts that are being written; `why` says what needs traces.
    """
    if not isinstance(cell.table, ChainTable):
        raise DraftgymError(
            f"a scheduler that {why}, and texts that are being written",
            "choose another one, or play traces: python evaluate.py --scheduler ...",
        )
    return cell.table


class OracleCellScheduler:
    """Knows how many tokens of this round's drafts the target will accept, which nobody can.

    It plans this round as well as can be with what is known of channels: no scheduler that plans
    round by round should get more.

    Args:
        cell: The cells, reset before.

    Raises:
        DraftgymError: The texts are being written.
    """

    def __init__(self, cell: Cell) -> None:
        traced(cell, "knows what will be accepted")
        self.cell = cell

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""
        every = np.arange(1, self.cell.longest + 1)
        known = (self.cell.acceptable[..., None] >= every).astype(float)
        return self.cell.best_plan(curve_plan(self.cell.problem(), known).lengths)

    def learn(self, played: CellRound) -> None:
        """Nothing: it knows."""


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
