"""Train a scheduler: how much each of many users drafts, each round, over a shared uplink.

    $ python -m rollouts.collect --prompts train --arms small:8 ngram:16 --out runs/users
    $ python train_scheduler.py                      # 8 users, PPO; a run folder is resumed
    $ python train_scheduler.py --minutes 15 --cell.users 16 --cell.leaving 0.2
    $ python train_scheduler.py --algorithm sac --run runs/scheduler-sac
    $ python train_scheduler.py --algorithm sac --shares --run runs/scheduler-shares   # ablation
    $ tensorboard --logdir runs                      # charts/goodput, validation/, losses/
    $ python evaluate.py --traces runs/users-heldout --scheduler fixed runs/scheduler/policy

A round is that of a whole cell: every user drafts, uploads and is verified. The policy is one
network for every user, which also sees all of them pooled: it does not depend on their order, and
what was trained with 8 users serves 16. `<run>/policy` is the best by texts that were set aside.

PPO scores every draft length. SAC is off-policy and knows boxes alone: it chooses numbers that are
rounded to lengths. (DQN does not take a length for each user at once.)
"""

from __future__ import annotations

import tyro

from agents.scheduler_args import SchedulerArgs
from agents.scheduler_training import train_scheduler
from decoding.errors import exit_on_user_error

if __name__ == "__main__":
    with exit_on_user_error():
        train_scheduler(tyro.cli(SchedulerArgs, description=__doc__))
