"""What `draftgym train-scheduler` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from draftgym.agents.common.settings import BeliefFit, SchedulerPPO, SchedulerSAC, TrainArgs
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.reward import GOODPUT, OBJECTIVES
from draftgym.policies.schedulers.learned import BELIEFS, LENGTHS, SHARES, TILTS

ACTIONS = {"ppo": (BELIEFS, TILTS, LENGTHS), "sac": (BELIEFS, SHARES)}
"""What agents can set (heads of `draftgym.policies.schedulers.learned`), by algorithm."""


@dataclass(frozen=True, kw_only=True)
class SchedulerArgs(TrainArgs):
    """Train a scheduler of many users.

    Attributes:
        traces: Folder of traces with chain arms, of training prompts.
        algorithm: ppo or sac (off-policy).
        actions: What the agent sets: beliefs (each user's acceptance; lengths and shares follow by
            Multi-SPIN's optimisation), tilts (ppo alone: these, and corrections of channel
            reports for the division), lengths (ppo alone: the band is divided by the optimal
            rule), or shares (sac alone: lengths and the band; the ablation).
        fit: Before reinforcement learning, beliefs are fitted to what was accepted in recorded
            rounds (maximum likelihood), and tilts to what reports were short of.
        rounds: Rounds to train for, of all cells together, over all resumed sessions.
        cell: The cell: setting, users, radio knowledge, asynchrony, who comes and goes.
        price: Price of a second in tokens: goodput (the speed being reached) or a number.
        objective: sum (all tokens alike) or log (proportional fairness).
        ppo: Hyperparameters; a resumed run keeps the ones it was started with.
        sac: The same.
    """

    traces: Path = Path("runs/users")
    run: Path = Path("runs/scheduler")
    actions: str = BELIEFS
    fit: BeliefFit = field(default_factory=BeliefFit)
    rounds: int = 300_000
    cell: CellArgs = field(default_factory=CellArgs)
    validation: float = 0.15
    price: float | str = GOODPUT
    objective: str = "sum"
    ppo: SchedulerPPO = field(default_factory=SchedulerPPO)
    sac: SchedulerSAC = field(default_factory=SchedulerSAC)

    @property
    def agent(self) -> SchedulerPPO | SchedulerSAC:
        """Hyperparameters of the algorithm that is asked for."""
        return self.sac if self.algorithm == "sac" else self.ppo


def check_args(args: SchedulerArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    args.check(ACTIONS, args.price, "--price")
    able = ACTIONS[args.algorithm]
    if args.actions not in able:
        raise DraftgymError(
            f"{args.algorithm} does not set {args.actions}",
            f"it sets {', '.join(able)}: choose one with --actions, or another --algorithm",
        )
    if args.objective not in OBJECTIVES:
        raise DraftgymError(
            f"unknown objective {args.objective!r}", f"choose from {', '.join(OBJECTIVES)}"
        )
    args.ppo.check("ppo")
    args.cell.settings()
