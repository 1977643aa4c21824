"""Train a router: which drafter, how many tokens, each round.

    $ python train_router.py                       # on traces, collected first if there are none
    $ python train_router.py --algorithm dqn --run runs/router-dqn
    $ python train_router.py --arms eagle3:2 dflash:2 ngram:8 plain --rounds 2000000
    $ python train_router.py --live --init runs/router --run runs/router-live   # fine-tune
    $ tensorboard --logdir runs                    # watch it

On traces a million rounds take minutes; live decoding plays some twenty rounds a second. A run
folder is resumed when it exists; `<run>/policy` is the deployable policy.
"""

from __future__ import annotations

import tyro

from agents.router import train_router
from agents.router_args import RouterArgs
from decoding.errors import exit_on_user_error

if __name__ == "__main__":
    with exit_on_user_error():
        train_router(tyro.cli(RouterArgs, description=__doc__))
