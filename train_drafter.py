"""Train a drafter on the target's own responses.

python train_drafter.py eagle3 --corpus responses.parquet --minutes 45
python train_drafter.py dflash --corpus responses.parquet --minutes 45
python train_drafter.py small-lm --corpus responses.parquet --minutes 45

A run folder is resumed when it exists. Watch it with `tensorboard --logdir runs`.
"""

from __future__ import annotations

import tyro

from decoding.drafting import Drafter
from decoding.errors import exit_on_user_error
from decoding.target import Target
from drafters.training.main import DFlashArgs, Eagle3Args, SmallLMArgs, train
from rollouts.acceptance import decode_rounds, summarise
from rollouts.prompt_sets import load_prompts


def measure(target: Target, drafter: Drafter) -> dict[str, float]:
    """Acceptance by position on a few held-out prompts of each category."""
    prompts = load_prompts("heldout", limit_per_category=2)
    rounds = decode_rounds(target, {drafter.name: drafter}, drafter.name, prompts, 48)
    return summarise([record for records in rounds.values() for record in records])


if __name__ == "__main__":
    with exit_on_user_error():
        train(
            tyro.extras.subcommand_cli_from_dict(
                {"eagle3": Eagle3Args, "dflash": DFlashArgs, "small-lm": SmallLMArgs},
                description=__doc__,
            ),
            measure,
        )
