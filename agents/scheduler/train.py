"""Train a scheduler: how much each of many users drafts, each round, over a shared uplink.

    $ draftgym collect --prompts train --arms small:16 ngram:16 --out runs/users
    $ draftgym train-scheduler --cell.users 16 --cell.fewest 4   # PPO; a run folder is resumed
    $ draftgym train-scheduler --minutes 15 --cell.report-rounds-old 1 --cell.report-error-db 3
    $ draftgym train-scheduler --algorithm sac --run runs/scheduler-sac
    $ draftgym train-scheduler --actions lengths --ppo.ent-coef 0.001 --run runs/scheduler-lengths
    $ tensorboard --logdir runs                      # charts/goodput, validation/, losses/
    $ draftgym evaluate --traces runs/users-heldout --scheduler fixed runs/scheduler/policy

A round is that of a whole cell: every user drafts, uploads and is verified. The policy is one
network for every user, which also sees all of them pooled: it does not depend on their order, and
serves any number of them. `<run>/policy` is the best by texts that were set aside.

By default the agent sets beliefs: what acceptance to expect of each user, from which lengths and
shares of the band follow by Multi-SPIN's optimisation. They are fitted to recorded rounds first,
which takes half a minute and most of the way; reinforcement learning goes on from there. With
`--actions lengths` it sets draft lengths from nothing, with `--algorithm sac --actions shares`
lengths and shares: ablations (docs/edge.md).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium.utils.seeding import np_random
from stable_baselines3 import PPO, SAC
from torch.optim import AdamW

from draftgym.agents.common.callbacks import SchedulerMetrics
from draftgym.agents.common.learners import falling, resumed_agent
from draftgym.agents.common.run_folder import MODEL, POLICY, RunFolder, log_to, write_config
from draftgym.agents.scheduler.args import HEADS, SchedulerArgs, check_args
from draftgym.agents.scheduler.belief_fitting import fit_beliefs
from draftgym.agents.scheduler.bounded_reward import BoundedReward
from draftgym.agents.scheduler.cell_args import known_means, means_of
from draftgym.agents.scheduler.play import run_worker
from draftgym.agents.scheduler.policy import SchedulerActorCritic, SchedulerSAC, acting_network
from draftgym.agents.scheduler.vec_env import SchedulerVecEnv
from draftgym.agents.scheduler.workers import LearnedCellScheduler
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.precision import usable_cores
from draftgym.decoding.provenance import command_line, describe_host, git_revision, plain
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.env import (
    RelaxedSchedulerEnv,
    SchedulerBeliefEnv,
    SchedulerEnv,
    SchedulerSharesEnv,
)
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from draftgym.policies.folder import read_body
from draftgym.policies.schedulers.learned import (
    BELIEFS,
    LENGTHS,
    RELAXED,
    SHARES,
    LearnedScheduler,
    SchedulerHead,
    save_scheduler,
)
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceOrigin

Agent = PPO | SAC
GAMES: dict[str, type[SchedulerEnv]] = {
    BELIEFS: SchedulerBeliefEnv,
    LENGTHS: SchedulerEnv,
    RELAXED: RelaxedSchedulerEnv,
    SHARES: SchedulerSharesEnv,
}
"""What agents with each head play."""
WHAT = {
    BELIEFS: "says what acceptance to expect of every user, from which lengths and shares follow",
    SHARES: "chooses every user's draft length and share of the band",
}
"""What a policy does each round, by its head."""
CELLS, ROUNDS = 48, 96
"""Cells that validation plays, and rounds of each."""


@dataclass(frozen=True)
class School:
    """What a scheduler is trained on.

    Attributes:
        env: The cells.
        origin: Where the traces come from.
        head: What the network says.
        means: Mean acceptance of the tasks of the training texts.
        aside: Texts to choose the best policy by.
    """

    env: SchedulerVecEnv
    origin: TraceOrigin
    head: SchedulerHead
    means: dict[str, float]
    aside: ChainTable


def train_scheduler(args: SchedulerArgs) -> Path:
    """Trains, saves and exports; returns the folder of the exported policy.

    Raises:
        DraftgymError: Bad settings, damaged traces, or a run folder that cannot be resumed.
    """
    check_args(args)
    school = make_school(args)
    agent = build_agent(args, school)  # refuses another run's folder before anything is written
    run = RunFolder(
        args.run,
        agent,
        lambda validated: export(args, school, agent, validated),
        "tokens_per_second",
        lambda: validation_goodput(args, school, agent),
    )
    facts = {"target": school.origin.target, "fingerprint": school.origin.target_fingerprint}
    write_config(args.run, args, facts)
    arms = " ".join(map(str, school.env.cell.table.arms))
    print(f"{args.cell.users} users of {args.cell.setting}, drafting with {arms}")
    print(f"{agent.num_timesteps} of {args.rounds} rounds done")
    # SAC logs whenever so many episodes have ended, and all cells end together.
    interval = 1 if args.algorithm == "ppo" else args.sac.n_envs
    run.learn(args.rounds, [SchedulerMetrics(school.env)], args.minutes, args.threads, interval)
    return args.run / POLICY


def make_school(args: SchedulerArgs) -> School:
    """Traces, divided, and the cells over them.

    Raises:
        DraftgymError: Damaged traces, arms that were not traced, a draft longer than traced.
    """
    traces = read_traces(args.traces)
    train, aside = traces.split(args.validation)
    settings = args.cell.settings()
    kind = HEADS[args.algorithm, args.actions]
    count = args.sac.n_envs if args.algorithm == "sac" else args.ppo.n_envs
    table = ChainTable(train, settings.arms)
    env = SchedulerVecEnv(
        table, settings, count, args.price, args.objective, GAMES[kind], seed=args.seed
    )
    head = SchedulerHead(kind, env.cell.longest, USER_FEATURES, CELL_FEATURES)
    return School(env, traces.origin, head, means_of(table), ChainTable(aside, settings.arms))


def build_agent(args: SchedulerArgs, school: School) -> Agent:
    """A fresh agent, or the run folder's.

    Raises:
        DraftgymError: The folder's run plays another game or has another target, or is damaged.
    """
    saved, beliefs = args.run / MODEL, school.head.kind == BELIEFS
    if saved.exists():
        _check_same_game(args.run / POLICY, school)
        agent: Agent = resumed_agent(saved, args.algorithm, BoundedReward(school.env), args.seed)
        if isinstance(agent, SAC):  # the buffer is not saved; it must fill before it teaches
            agent.learning_starts = agent.num_timesteps + args.sac.learning_starts
    else:
        agent = fresh_agent(args, school)
        torch.set_num_threads(args.threads or usable_cores())
        if beliefs:
            fit_beliefs(acting_network(agent.policy), school.env.cell, args.fit, args.seed)
    if beliefs:  # any good policy will do
        reference = deployable_scheduler(agent, school)
        school.env.reference = LearnedCellScheduler(reference, school.env.cell)
    log_to(args.run, agent)
    return agent


def fresh_agent(args: SchedulerArgs, school: School) -> Agent:
    """An untrained agent."""
    env = BoundedReward(school.env)
    made = asdict(args.sac if args.algorithm == "sac" else args.ppo)
    rate, _ = falling(made.pop("learning_rate")), made.pop("n_envs")
    policy: dict[str, Any] = {"head": school.head, "width": made.pop("width")}
    common: dict[str, Any] = {"seed": args.seed, "device": "cpu", "learning_rate": rate}
    if args.algorithm == "sac":
        entropy = made.pop("target_entropy") * float(np.prod(env.action_space.shape or 1))
        return SAC(
            SchedulerSAC, env, policy_kwargs=policy, target_entropy=entropy, **common, **made
        )
    decay = {"optimizer_kwargs": {"weight_decay": made.pop("weight_decay")}}
    policy |= {"optimizer_class": AdamW, "spread": made.pop("spread")} | decay
    return PPO(SchedulerActorCritic, env, policy_kwargs=policy, **common, **made)


def deployable_scheduler(agent: Agent, school: School) -> LearnedScheduler:
    """A copy of what acts."""
    network = copy.deepcopy(acting_network(agent.policy))
    return LearnedScheduler(network, school.head, school.means)


def validation_goodput(args: SchedulerArgs, school: School, agent: Agent) -> float:
    """Total tokens over total seconds on the texts set aside; users and channels are always alike.

    The tasks' means are the training texts', as they will be in deployment.
    """
    settings = args.cell.settings(known_means(school.means, school.aside))
    cell = Cell(school.aside, settings, CELLS)
    policy = deployable_scheduler(agent, school)
    seeds = [np_random(args.seed + index)[0] for index in range(CELLS)]
    reached = run_worker(lambda one: LearnedCellScheduler(policy, one), cell, seeds, ROUNDS)
    return float(reached.tokens.sum() / reached.seconds.sum())


def export(args: SchedulerArgs, school: School, agent: Agent, validated: float | None) -> None:
    """Writes the deployable policy with its card.

    Args:
        args: How it was trained.
        school: On what.
        agent: The agent.
        validated: Tokens per second on the texts set aside.
    """
    folder, rounds = args.run / POLICY, agent.num_timesteps
    provenance = {
        "settings": plain(asdict(args)),
        "rounds": rounds,
        "validation_tokens_per_second": validated,
        "host": describe_host(),
    }
    policy, arms = deployable_scheduler(agent, school), school.env.cell.table.arms
    save_scheduler(policy, arms, school.origin, folder, provenance)
    card = policy_card(args, school, rounds, validated)
    (folder / "README.md").write_text(card, encoding="utf-8")


def policy_card(args: SchedulerArgs, school: School, rounds: int, validated: float | None) -> str:
    """The card beside an exported scheduler: what it is, how it was made, how to use it."""
    arms = ", ".join(f"`{arm}`" for arm in school.env.cell.table.arms)
    goodput = "unknown" if validated is None else f"{validated:.2f} tokens per second"
    what = WHAT.get(school.head.kind, "chooses every user's draft length")
    return f"""# Scheduler of {args.cell.users} users for {school.origin.target}

Each round it {what}; any number of users, in any order.

| | |
|---|---|
| target | {school.origin.target}, fingerprint `{school.origin.target_fingerprint}` |
| devices draft with | {arms}, up to {school.head.longest} tokens |
| cell | {args.cell.setting} |
| trained | {rounds} rounds on traces, {args.algorithm.upper()}, seed {args.seed} |
| reward | tokens - price x seconds, price {args.price}, objective {args.objective} |
| texts set aside | {goodput} |
| made by | `{command_line()}` at revision `{git_revision()}` |

    python evaluate.py --scheduler heterogeneous@beta FOLDER --traces HELD_OUT_TRACES
"""


def _check_same_game(exported: Path, school: School) -> None:
    """Networks may fit and still mean something else."""
    if not exported.is_dir():
        return
    body = read_body(exported)
    wanted = {
        "head": school.head.kind,
        "longest_draft": school.head.longest,
        "arms": [str(arm) for arm in school.env.cell.table.arms],
        "target_fingerprint": school.origin.target_fingerprint,
    }
    for name, value in wanted.items():
        if body.get(name) != value:
            raise DraftgymError(
                f"{exported.parent} was trained with {name} {body.get(name)}, asked for: {value}",
                "give the same settings and traces, or another --run",
            )


def main(arguments: Sequence[str]) -> None:
    """`draftgym train-scheduler`."""
    train_scheduler(
        tyro.cli(
            SchedulerArgs, args=arguments, description=__doc__, prog="draftgym train-scheduler"
        )
    )
