"""Train a scheduler: how much each of many users drafts, each round, over a shared uplink.

    $ python -m rollouts.collect --prompts train --arms small:16 ngram:16 --out runs/users
    $ python train_scheduler.py --cell.users 16 --cell.fewest 4   # PPO; a run folder is resumed
    $ python train_scheduler.py --minutes 15 --cell.report-rounds-old 1 --cell.report-error-db 3
    $ python train_scheduler.py --algorithm sac --run runs/scheduler-sac
    $ python train_scheduler.py --actions lengths --ppo.ent-coef 0.001 --run runs/scheduler-lengths
    $ tensorboard --logdir runs                      # charts/goodput, validation/, losses/
    $ python evaluate.py --traces runs/users-heldout --scheduler fixed runs/scheduler/policy

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

import tyro

from agents.scheduler_args import SchedulerArgs
from agents.scheduler_training import train_scheduler
from decoding.errors import exit_on_user_error

if __name__ == "__main__":
    with exit_on_user_error():
        train_scheduler(tyro.cli(SchedulerArgs, description=__doc__))
