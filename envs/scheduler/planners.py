"""Who plans the rounds of cells: Multi-SPIN's rules, trained schedulers, and an oracle.

A scheduler (`draftgym.policies.multispin`) plans with its own belief about acceptance.
`RulePlanner` tells it what happens in a cell and asks it for plans, `LearnedPlanner` does so with a
trained policy, and `OraclePlanner` knows what nobody can know. `play_rounds` plays many cells by
the letter, shares and turns included; `SchedulerPolicy` plays a Gymnasium environment through the
same `predict` that learned policies have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import user_path
from draftgym.envs.cell.cell import Cell, CellRound
from draftgym.envs.cell.state import CellState
from draftgym.envs.cell.texts import ChainTable, Mask
from draftgym.envs.radio.channel import Generators
from draftgym.envs.scheduler.env import (
    SchedulerBeliefEnv,
    SchedulerEnv,
    SchedulerSharesEnv,
    SchedulerTiltEnv,
)
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES, observe_cell
from draftgym.policies.folder import PolicyTarget
from draftgym.policies.multispin.curves import curve_plan
from draftgym.policies.multispin.problem import Lengths, Plan, RoundProblem
from draftgym.policies.schedulers.learned import (
    BELIEFS,
    LENGTHS,
    SHARES,
    TILTS,
    LearnedScheduler,
    load_scheduler,
)
from draftgym.policies.schedulers.rules import EntropyExit, make_scheduler

ENVIRONMENTS: dict[str, type[SchedulerEnv]] = {
    BELIEFS: SchedulerBeliefEnv,
    LENGTHS: SchedulerEnv,
    SHARES: SchedulerSharesEnv,
    TILTS: SchedulerTiltEnv,
}
"""The environment whose actions a network answers with, by its head."""


class CellPlanner(Protocol):
    """Who plans the steps of n cells."""

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""

    def learn(self, played: CellRound) -> None:
        """Is told how a step of the cells went."""


ORACLE = "oracle"

MakePlanner = Callable[[Cell], CellPlanner]
"""Makes who plans, of cells that have been reset."""


class RulePlanner:
    """One of Multi-SPIN's schedulers, or a baseline, at work in n cells.

    Within a window a plan is for those who decide, as if they had their part of the band; the band
    is then divided by the optimal rule, since plans say nothing of uploads under way.

    Args:
        spec: `rule` or `rule@belief`, as `draftgym.policies.schedulers.rules.make_scheduler` reads
            it. The belief `given` knows each prompt's likeliest constant acceptance: an oracle of
            the model.
        cell: The cells, reset before.
        min_length: Shortest draft that it may plan; 1 in the paper, 0 lets a user skip drafting.

    Raises:
        DraftgymError: No such scheduler.
    """

    def __init__(self, spec: str, cell: CellState, min_length: int = 0) -> None:
        self.scheduler = make_scheduler(spec, cell.users.means.tolist())
        self.cell, self._min_length = cell, min_length
        self.scheduler.begin(cell.users.active, cell.users.task, cell.users.active)

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""
        problem = self.cell.problem(self._min_length)
        plan = self.scheduler.plan(problem, self._nothing() if self.scheduler.looks else None)
        lengths = np.where(self.cell.deciding, plan.lengths, 0)
        unsent = None
        if self.scheduler.early_exit is not None:
            drafted, sent = self._cut(self.scheduler.early_exit, lengths, problem)
            lengths, unsent = sent, drafted - sent
        shares = np.asarray(plan.shares)
        if self.cell.settings.window is not None:
            shares = self.cell.best_plan(lengths).shares
        return Plan(lengths, shares, plan.in_turn, unsent)

    def _nothing(self) -> Mask:
        """Whose lookup finds nothing: it takes no time, and whoever has the text can do it."""
        users, table = self.cell.users, self.cell.table
        looking = self.cell.deciding & (users.token_seconds == 0)
        found = table.confidence(users.arm, users.row, looking) > 0
        return np.asarray(looking & ~found)

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
        self.scheduler.begin(played.began, self.cell.users.task, played.newcomers)


def traced(cell: CellState, why: str) -> ChainTable:
    """The traces that a cell plays.

    Raises:
        DraftgymError: It plays texts that are being written; `why` says what needs traces.
    """
    if not isinstance(cell.table, ChainTable):
        raise DraftgymError(
            f"a scheduler that {why}, and texts that are being written",
            "choose another one, or play traces: draftgym evaluate --scheduler ...",
        )
    return cell.table


class OraclePlanner:
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


class LearnedPlanner:
    """A trained scheduler at work in n cells.

    Args:
        policy: The policy.
        cell: The cells, reset before.

    Raises:
        DraftgymError: It knows another longest draft, or reads other observations.
    """

    def __init__(self, policy: LearnedScheduler, cell: CellState) -> None:
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
        self._actions = ENVIRONMENTS[head.kind].actions_of(cell.settings.users, cell.longest)

    def plan(self) -> Plan:
        """The plan of the next step `[n, K]`."""
        actions, _ = self.policy.predict(observe_cell(self.cell), deterministic=True)
        return self._actions.plan(self.cell, actions)

    def learn(self, played: CellRound) -> None:
        """Nothing: all that it knows is in the observations."""


def play_rounds(
    planner: str | MakePlanner, cell: Cell, rng: Generators, rounds: int
) -> Iterator[CellRound]:
    """Resets the cells and plays some rounds, one after the other.

    Args:
        planner: Who plans; a text is `RulePlanner`'s.
        cell: The cells.
        rng: See `Cell.reset`. The same seeds give every planner the same users and channels at the
            start; later ones depend on how time passes.
        rounds: Rounds of every cell.
    """
    cell.reset(rng)
    make = partial(RulePlanner, planner) if isinstance(planner, str) else planner
    planning = make(cell)
    for _ in range(rounds):
        played = cell.step(planning.plan())
        planning.learn(played)
        yield played


def planner_by_name(spec: str, target: PolicyTarget, min_length: int = 0) -> MakePlanner:
    """Who plans, as the command line names it: `rule`, `rule@belief+found`, a folder, `oracle`.

    Args:
        spec: The name; a text with a slash is the folder of a trained scheduler.
        target: Whose texts are planned for; a scheduler of another target is refused.
        min_length: Shortest draft of closed forms.

    Raises:
        DraftgymError: An unknown scheduler, or a folder that holds none.
    """
    path = user_path(spec)
    if path.is_dir() or "/" in spec:
        return partial(LearnedPlanner, load_scheduler(path, target))
    if spec == ORACLE:
        return OraclePlanner
    make_scheduler(spec, [0.5])  # an unknown one is found before anything is played
    return partial(RulePlanner, spec, min_length=min_length)


class SchedulerPolicy:
    """A scheduler that plays a Gymnasium environment; a new one for every episode.

    `draftgym/Scheduler-v0` divides the band by its own rule, whatever the scheduler's shares;
    `draftgym/SchedulerShares-v0` takes them. Users in turn cannot be said by any action: use
    `play_cells`.

    Args:
        spec: See `RulePlanner`.
        env: The environment, unwrapped and reset.
        min_length: See `RulePlanner`.
    """

    def __init__(self, spec: str, env: SchedulerEnv, min_length: int = 0) -> None:
        self._env, self._planner = env, RulePlanner(spec, env.cell, min_length)
        self._planned = False

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
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
            self._planner.learn(self._env.played)
        plan = self._planner.plan()
        if plan.in_turn:
            raise DraftgymError(
                "this scheduler serves users in turn, and no action says so",
                "play it with draftgym.agents.scheduler.totals.play_cells",
            )
        self._planned = True
        return self._env.actions.actions(plan)[0], None
