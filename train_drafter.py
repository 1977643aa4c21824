"""Train a drafter on the target's own responses.

python train_drafter.py eagle3 --corpus responses.parquet --trainer.minutes 45
python train_drafter.py dflash --corpus responses.parquet --trainer.updates 2000
python train_drafter.py small-lm --corpus responses.parquet --trainer.patience 3

A run folder is resumed when it exists. Watch it with `tensorboard --logdir runs`.
"""

from __future__ import annotations

import tyro

from decoding.errors import exit_on_user_error
from drafters.training.main import DFlashArgs, Eagle3Args, SmallLMArgs, train

if __name__ == "__main__":
    with exit_on_user_error():
        train(
            tyro.extras.subcommand_cli_from_dict(
                {"eagle3": Eagle3Args, "dflash": DFlashArgs, "small-lm": SmallLMArgs},
                description=__doc__,
            )
        )
