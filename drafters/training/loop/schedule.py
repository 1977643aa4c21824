"""How long a drafter trains, at which learning rate, and how often its run is measured and saved.

The budget is wall-clock minutes, because that is what a laptop's owner has, or updates, because
objectives that are compared must learn from the same texts as often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from draftgym.decoding.errors import DraftgymError


@dataclass(frozen=True)
class TrainerConfig:
    """Knobs of the loop.

    Attributes:
        minutes: Training budget in minutes of updates (measuring and saving are not counted), over
            all resumed sessions.
        updates: Budget in updates instead of minutes: equal for all objectives that are compared.
        batch_size: Texts per update.
        lr: Peak learning rate.
        warmup: Share of the budget with a rising learning rate.
        clip: Largest gradient norm.
        save_minutes: Minutes between saves.
        measure_minutes: Minutes between measurements on texts set aside, which are never trained
            on: loss, top-1 agreement, and the acceptance length of decoding the greedy ones. The
            weights with the longest acceptance are kept as `checkpoint`. It is also measured at the
            start (so that training which only harms keeps what it started from) and at the end. 0:
            only then.
        measure_updates: Updates between measurements, instead of measure_minutes; 0 goes by
            minutes.
        patience: Stop after this many measurements in a row that are not better than the best; 0
            never stops early.
        seed: Seed of the batch order.
    """

    minutes: float = 45.0
    updates: int | None = None
    batch_size: int = 4
    lr: float = 1e-3
    warmup: float = 0.03
    clip: float = 0.5
    save_minutes: float = 4.0
    measure_minutes: float = 10.0
    measure_updates: int = 0
    patience: int = 0
    seed: int = 0


def check_trainer(config: TrainerConfig) -> None:
    """Refuses knobs that cannot work.

    Raises:
        DraftgymError: No budget, empty batches, negative counts, or patience with nothing to wait
            for.
    """
    if config.updates is None and not config.minutes > 0:
        raise DraftgymError(
            f"--trainer.minutes is {config.minutes}", "give a positive number of minutes"
        )
    if config.updates is not None and config.updates < 1:
        raise DraftgymError(
            f"--trainer.updates is {config.updates}",
            "give a positive number of updates, or leave it out to train by minutes",
        )
    if config.batch_size < 1:
        raise DraftgymError("--trainer.batch-size is below one", "train on at least one text")
    if config.measure_updates < 0:
        raise DraftgymError(
            f"--trainer.measure-updates is {config.measure_updates}",
            "give a number of updates, or 0 to measure by minutes",
        )
    if config.patience < 0:
        raise DraftgymError(
            f"--trainer.patience is {config.patience}",
            "give a number of measurements, or 0 to train to the end of the budget",
        )
    if config.patience and not (config.measure_updates or config.measure_minutes > 0):
        raise DraftgymError(
            "--trainer.patience counts measurements, but none are made on the way",
            "set --trainer.measure-minutes or --trainer.measure-updates",
        )


def learning_rate(config: TrainerConfig, spent: float) -> float:
    """Linear warm-up, then cosine to a twentieth of the peak.

    Args:
        config: Peak and warm-up share.
        spent: Share of the budget that is used, 0 to 1.
    """
    if spent < config.warmup:
        return config.lr * (0.05 + 0.95 * spent / config.warmup)
    phase = min(1.0, (spent - config.warmup) / (1 - config.warmup))
    return config.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * phase)))
