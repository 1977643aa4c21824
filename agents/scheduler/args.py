"""What `train_scheduler.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from draftgym.agents.common.hyperparameters import BeliefFit, SchedulerPPO, SchedulerSAC
from draftgym.agents.router.args import check_budget, check_price
from draftgym.agents.scheduler.cell_args import CellArgs
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.provenance import check_run_folder
from draftgym.envs.router.reward import GOODPUT
from draftgym.envs.scheduler.reward import OBJECTIVES
from draftgym.policies.schedulers.learned import BELIEFS, LENGTHS, RELAXED, SHARES

ALGORITHMS = ("ppo", "sac")
HEADS = {
    ("ppo", BELIEFS): BELIEFS,
    ("ppo", LENGTHS): LENGTHS,
    ("sac", BELIEFS): BELIEFS,
    ("sac", LENGTHS): RELAXED,
    ("sac", SHARES): SHARES,
}
"""Heads of networks (`draftgym.policies.schedulers.learned`) by algorithm and what it sets."""


@dataclass(frozen=True, kw_only=True)
class SchedulerArgs:
    """Train a scheduler of many users.

    Attributes:
        traces: Folder of traces with chain arms, of training prompts.
        run: Run folder; resumed when it exists.
        algorithm: ppo or sac (off-policy).
        actions: What the agent sets: beliefs (each user's acceptance; lengths and shares follow by
            Multi-SPIN's optimisation), lengths (the band is divided by the optimal rule; sac sets
            numbers that are rounded), or shares (sac alone: lengths and the band; the ablation).
        fit: Before reinforcement learning, beliefs are fitted to what was accepted in recorded
            rounds (maximum likelihood).
        rounds: Rounds to train for, of all cells together, over all resumed sessions.
        minutes: Stop earlier when this much time has passed; the run can be resumed.
        cell: The cell: setting, users, radio knowledge, asynchrony, who comes and goes.
        validation: Share of the texts set aside to choose the best policy by.
        price: Price of a second in tokens: goodput (the speed being reached) or a number.
        objective: sum (all tokens alike) or log (proportional fairness).
        threads: CPU threads; default: all cores.
        seed: Seed of users, channels, exploration and initial weights.
        ppo: Hyperparameters; a resumed run keeps the ones it was started with.
        sac: The same.
    """

    traces: Path = Path("runs/users")
    run: Path = Path("runs/scheduler")
    algorithm: str = "ppo"
    actions: str = BELIEFS
    fit: BeliefFit = field(default_factory=BeliefFit)
    rounds: int = 300_000
    minutes: float | None = None
    cell: CellArgs = field(default_factory=CellArgs)
    validation: float = 0.15
    price: float | str = GOODPUT
    objective: str = "sum"
    threads: int | None = None
    seed: int = 0
    ppo: SchedulerPPO = field(default_factory=SchedulerPPO)
    sac: SchedulerSAC = field(default_factory=SchedulerSAC)


def check_args(args: SchedulerArgs) -> None:
    """Raises `DraftgymError` for settings that cannot work, before anything is loaded."""
    check_budget(args.rounds, args.minutes, args.validation)
    check_price(args.price, "--price")
    if args.algorithm not in ALGORITHMS:
        raise DraftgymError(
            f"unknown algorithm {args.algorithm!r}", f"choose from {', '.join(ALGORITHMS)}"
        )
    if (args.algorithm, args.actions) not in HEADS:
        able = [actions for algorithm, actions in HEADS if algorithm == args.algorithm]
        raise DraftgymError(
            f"{args.algorithm} does not set {args.actions}",
            f"it sets {', '.join(able)}: choose one with --actions, or another --algorithm",
        )
    if args.objective not in OBJECTIVES:
        raise DraftgymError(
            f"unknown objective {args.objective!r}", f"choose from {', '.join(OBJECTIVES)}"
        )
    if args.ppo.n_steps * args.ppo.n_envs < 2 or args.ppo.batch_size < 2:
        raise DraftgymError("an update needs at least two rounds", "raise --ppo.n-steps")
    args.cell.settings()
    check_run_folder(args.run)
