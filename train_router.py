"""Train a router on real decoding: which drafter, how many tokens, each round.

    $ python train_router.py                          # a short run on the shipped drafters
    $ python train_router.py --arms eagle3:2 eagle3:5 dflash:2 ngram:8 plain --rounds 20000
    $ tensorboard --logdir runs                       # watch it

A run folder is resumed when it exists; `<run>/policy` is the deployable policy.
"""

from __future__ import annotations

import tyro

from agents.router import RouterArgs, train_router
from decoding.errors import exit_on_user_error

if __name__ == "__main__":
    with exit_on_user_error():
        train_router(tyro.cli(RouterArgs, description=__doc__))
