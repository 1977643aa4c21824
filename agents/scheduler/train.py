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
`--actions tilts` it also corrects reported channels before the band is divided by them. With
`--actions lengths` it sets draft lengths from nothing, with `--algorithm sac --actions shares`
lengths and shares: ablations (docs/guides/schedulers.md).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium.utils.seeding import np_random
from stable_baselines3 import PPO, SAC
from torch.optim import AdamW

from draftgym.agents.common.settings import SchedulerPPO
from draftgym.agents.common.trainer import POLICY, Trainer, open_traces, write_card
from draftgym.agents.scheduler.args import SchedulerArgs, check_args
from draftgym.agents.scheduler.belief_fitting import fit_beliefs
from draftgym.agents.scheduler.bounded_reward import BoundedReward
from draftgym.agents.scheduler.cell_args import known_means, means_of
from draftgym.agents.scheduler.policy import SchedulerActorCritic, SchedulerSAC, acting_network
from draftgym.agents.scheduler.totals import play_cells
from draftgym.decoding.model.precision import usable_cores
from draftgym.decoding.provenance import sole_writer
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.texts import ChainTable
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES
from draftgym.envs.scheduler.planners import ENVIRONMENTS, LearnedPlanner
from draftgym.envs.scheduler.vector import VECTOR_FORMS
from draftgym.policies.schedulers.learned import (
    BELIEFS,
    SHARES,
    TILTS,
    LearnedScheduler,
    SchedulerHead,
    save_scheduler,
)
from draftgym.rollouts.traces.trace import TraceSet

COLLECT = (
    "draftgym collect --prompts train --arms small:16 ngram:16 --dtype float32 --out {folder}   "
    "(once; 150 texts, some ten thousand positions: 3 to 8 minutes on two cores)"
)
WHAT = {
    BELIEFS: "says what acceptance to expect of every user, from which lengths and shares follow",
    TILTS: "says what acceptance to expect of every user, for lengths, and channel, for shares",
    SHARES: "chooses every user's draft length and share of the band",
}
"""What a policy does each round, by its head."""
FITTED = (BELIEFS, TILTS)
"""Heads that are fitted to recorded rounds before they are trained."""
CELLS, ROUNDS = 48, 96
"""Cells that validation plays, and rounds of each."""
EPISODE = 256
"""Steps of an episode."""


def train_scheduler(args: SchedulerArgs) -> Path:
    """Trains on the traces in `args.traces`, saves and exports.

    Returns:
        The folder of the exported policy.

    Raises:
        DraftgymError: Bad settings, no traces, or a run folder that cannot be resumed with them.
    """
    check_args(args)
    with sole_writer(args.run, "--run"):
        traces = open_traces(args.traces, COLLECT.format(folder=args.traces))
        SchedulerTrainer(args, traces, args.run).train()
    return args.run / POLICY


def train(traces: TraceSet, settings: SchedulerArgs) -> LearnedScheduler:
    """Trains on loaded traces, in memory: no file is read or written.

    Args:
        traces: What chains of every drafter would do, of training prompts.
        settings: How; `traces` and `run` are not read.

    Returns:
        The best policy by validation.

    Raises:
        DraftgymError: Bad settings, or arms that were not traced.
    """
    check_args(settings)
    trainer = SchedulerTrainer(settings, traces, None)
    trainer.train()
    return trainer.best_policy()


class SchedulerTrainer(Trainer[LearnedScheduler]):
    """Trains a scheduler.

    Args:
        args: Settings, checked.
        traces: Texts to train on; part of them is set aside.
        run: Run folder; None keeps everything in memory.

    Attributes:
        cells: The cells that the agent plays.
        head: What the network says.
        means: Mean acceptance of the tasks of the training texts.
        aside: Texts to choose the best policy by.
    """

    figure, usual_speed = "tokens_per_second", 2_000
    args: SchedulerArgs
    env: BoundedReward
    agent: PPO | SAC

    def __init__(self, args: SchedulerArgs, traces: TraceSet, run: Path | None) -> None:
        self.args, self.run, self.rounds = args, run, args.rounds
        self.target = self.origin = traces.origin
        texts, aside = traces.split(args.validation)
        settings, kind = args.cell.settings(), ENVIRONMENTS[args.actions]
        table, self.aside = ChainTable(texts, settings.arms), ChainTable(aside, settings.arms)
        self.means, count = means_of(table), args.agent.n_envs
        self.cells = self.counts = VECTOR_FORMS[kind](
            count, table, settings, args.price, args.objective, EPISODE
        )
        self.env = BoundedReward(self.cells, args.seed)
        longest = self.cells.cell.longest
        self.head = SchedulerHead(args.actions, longest, USER_FEATURES, CELL_FEATURES)
        # SAC logs whenever so many episodes have ended, and all cells end together.
        self.log_interval = 1 if args.algorithm == "ppo" else count
        self.agent = self.make_agent()
        if args.actions in FITTED and self.env.reference is None:  # any good policy will do
            self.env.reference = LearnedPlanner(self.policy(), self.cells.cell)
        arms = " ".join(map(str, self.cells.cell.table.arms))
        print(f"{args.cell.users} users of {args.cell.setting}, drafting with {arms}")

    def fresh_agent(self) -> PPO | SAC:
        """An untrained agent; one that sets beliefs is fitted to recorded rounds."""
        args = self.args
        policy: dict[str, Any] = {"head": self.head, "width": args.agent.width}
        common: dict[str, Any] = {"seed": args.seed, "device": "cpu", "policy_kwargs": policy}
        agent: PPO | SAC
        if isinstance(args.agent, SchedulerPPO):
            policy |= {"spread": args.ppo.spread, "tilt_spread": args.ppo.tilt_spread}
            policy["optimizer_class"] = AdamW
            policy["optimizer_kwargs"] = {"weight_decay": args.ppo.weight_decay}
            made = args.ppo.for_sb3("spread", "tilt_spread", "weight_decay")
            agent = PPO(SchedulerActorCritic, self.env, **common, **made)
        else:
            entropy = args.sac.target_entropy * float(np.prod(self.env.action_space.shape or 1))
            made = args.sac.for_sb3() | {"target_entropy": entropy}
            agent = SAC(SchedulerSAC, self.env, **common, **made)
        torch.set_num_threads(args.threads or usable_cores())
        if args.actions in FITTED:
            fit_beliefs(acting_network(agent.policy), self.cells.cell, args.fit, args.seed)
        return agent

    def identity(self) -> dict[str, Any]:
        """Networks of the same size may say other things, of other drafts."""
        return {
            "head": self.head.kind,
            "longest_draft": self.head.longest,
            "arms": [str(arm) for arm in self.cells.cell.table.arms],
            "target_fingerprint": self.target.fingerprint,
        }

    def episodes(self) -> dict[str, Any]:
        """The cells, and whose plan is taken off the rewards."""
        reference = self.env.reference
        policy = reference.policy if isinstance(reference, LearnedPlanner) else None
        return {"cells": self.env.playing.snapshot(), "reference": policy}

    def world(self) -> Any:
        """The texts, the cells, and what their steps are worth."""
        table, args = self.cells.table, self.args
        texts = list(zip(table.question_ids.tolist(), table.last.tolist(), strict=True))
        return texts, self.cells.num_envs, asdict(args.cell), args.price, args.objective

    def go_on(self, episodes: Any) -> None:
        """Puts the cells where these stand."""
        self.env.playing.restore(episodes["cells"])
        if episodes["reference"] is not None:
            self.env.reference = LearnedPlanner(episodes["reference"], self.cells.cell)

    def policy(self) -> LearnedScheduler:
        """A copy of what acts."""
        network = copy.deepcopy(acting_network(self.agent.policy))
        squashed = isinstance(self.agent, SAC)
        return LearnedScheduler(network, self.head, self.means, squashed_noise=squashed)

    def validate(self) -> float:
        """Total tokens over total seconds on the texts set aside; users and channels always alike.

        The tasks' means are the training texts', as they will be in deployment.
        """
        cell = Cell(self.aside, self.args.cell.settings(known_means(self.means, self.aside)), CELLS)
        seeds = [np_random(self.args.seed + index)[0] for index in range(CELLS)]
        return play_cells(partial(LearnedPlanner, self.policy()), cell, seeds, ROUNDS).goodput

    def charts(self, seconds: float) -> dict[str, float]:
        """Goodput, lengths and speed of training."""
        cells = self.cells
        if cells.user_rounds < 5_000:
            return {}
        return {
            "charts/goodput": cells.tokens / cells.seconds,
            "charts/acceptance_length": cells.tokens / cells.user_rounds,
            "charts/draft_length": cells.drafted / cells.user_rounds,
            "charts/accepted_share": (cells.tokens - cells.user_rounds) / max(cells.drafted, 1.0),
            "charts/price": cells.reward.price,
            "charts/user_rounds_per_second": cells.user_rounds / seconds,
        }

    def write(self, policy: LearnedScheduler, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Writes the deployable form."""
        save_scheduler(policy, self.cells.cell.table.arms, self.origin, folder, provenance)

    def card(self, validated: float | None) -> str:
        """The card beside it."""
        args, target = self.args, self.target
        arms = ", ".join(f"`{arm}`" for arm in self.cells.cell.table.arms)
        price = f"price {args.price}, objective {args.objective}"
        algorithm = f"{args.algorithm.upper()}, seed {args.seed}"
        what = WHAT.get(self.head.kind, "chooses every user's draft length")
        return write_card(
            f"Scheduler of {args.cell.users} users for {target.name}",
            f"Each round it {what}; any number of users, in any order.",
            {
                "target": f"{target.name}, fingerprint `{target.fingerprint}`",
                "devices draft with": f"{arms}, up to {self.head.longest} tokens",
                "cell": str(args.cell.setting),
                "trained": f"{self.agent.num_timesteps} rounds on traces, {algorithm}",
                "reward": f"tokens - price x seconds, {price}",
                "texts set aside": "unknown"
                if validated is None
                else f"{validated:.2f} tokens per second",
            },
            "    draftgym evaluate --scheduler heterogeneous@beta FOLDER --traces HELD_OUT_TRACES",
        )


def main(arguments: Sequence[str]) -> None:
    """`draftgym train-scheduler`."""
    train_scheduler(
        tyro.cli(
            SchedulerArgs, args=arguments, description=__doc__, prog="draftgym train-scheduler"
        )
    )
