"""How long a drafter trains, where its run stands, and which of its weights are the best.

The budget is wall-clock minutes, because that is what a laptop's owner has, or updates, because
objectives that are compared must learn from the same texts as often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.seeds import check_seed

SELECTS = "acceptance_length"
"""The figure that decides which weights are the best; longer is better."""


@dataclass(frozen=True)
class TrainerConfig:
    """Knobs of the loop.

    Attributes:
        minutes: Training budget in minutes of updates (measuring and saving are not counted), over
            all resumed sessions.
        updates: Budget in updates instead of minutes: equal for all objectives that are compared.
        batch_size: Texts per update, whatever they are shared by.
        parts: Parts that a batch is computed in, one after the other, which takes less memory, or
            by several processes (`torchrun`). Default: one for each process. Where it is given, a
            run goes on alike with another number of processes.
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
    parts: int | None = None
    lr: float = 1e-3
    warmup: float = 0.03
    clip: float = 0.5
    save_minutes: float = 4.0
    measure_minutes: float = 10.0
    measure_updates: int = 0
    patience: int = 0
    seed: int = 0

    @property
    def plan(self) -> str:
        """What is about to happen, and how long it takes."""
        budget = f"{self.minutes:g} minutes of updates"
        if self.updates is not None:
            budget = f"{self.updates} updates"
        often = f", every {self.measure_minutes:g} minutes" if self.measure_minutes > 0 else ""
        if self.measure_updates:
            often = f", every {self.measure_updates} updates"
        return f"training for {budget}; measuring (at the start{often}, at the end) comes on top"


def check_trainer(config: TrainerConfig) -> None:
    """Refuses knobs that cannot work.

    Raises:
        DraftgymError: A seed outside of 31 bits, no budget, empty batches, negative counts, or
            patience with nothing to wait for.
    """
    check_seed(config.seed, "--trainer.seed")
    least = {"batch_size": 1, "parts": 1, "updates": 1, "measure_updates": 0, "patience": 0}
    for knob, floor in least.items():
        value = getattr(config, knob)
        if value is not None and value < floor:
            option = "--trainer." + knob.replace("_", "-")
            raise DraftgymError(f"{option} is {value}", f"give a number of at least {floor}")
    if config.updates is None and not config.minutes > 0:
        raise DraftgymError(
            f"--trainer.minutes is {config.minutes}",
            "give a positive number of minutes, or a budget in --trainer.updates",
        )
    if config.patience and not (config.measure_updates or config.measure_minutes > 0):
        raise DraftgymError(
            "--trainer.patience counts measurements, but none are made on the way",
            "set --trainer.measure-minutes or --trainer.measure-updates",
        )


def learning_rate(config: TrainerConfig, spent: float) -> float:
    """Linear warm-up, then cosine to a twentieth of the peak.

    It follows the share of the budget, which may be minutes, where `torch.optim.lr_scheduler`
    counts steps.

    Args:
        config: Peak and warm-up share.
        spent: Share of the budget that is used, 0 to 1.
    """
    if spent < config.warmup:
        return config.lr * (0.05 + 0.95 * spent / config.warmup)
    phase = min(1.0, (spent - config.warmup) / (1 - config.warmup))
    return config.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * phase)))


@dataclass
class Progress:
    """State of a run, apart from its weights; saved and restored.

    Attributes:
        updates: Updates so far.
        seconds: Seconds spent in them.
        response_tokens: Response tokens visited.
        tera_flops: Operations of all matrix products, estimated from updates now and then.
        history: One entry per line of `metrics.jsonl`.
        measured_updates: `updates` at the last measurement; -1 before the first.
        measured_seconds: `seconds` at the last measurement.
        best_updates: `updates` of the best measured weights; None before any.
        best_value: Their acceptance length.
        worse: Measurements in a row, up to now, that were not better than the best.
    """

    updates: int = 0
    seconds: float = 0.0
    response_tokens: int = 0
    tera_flops: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    measured_updates: int = -1
    measured_seconds: float = 0.0
    best_updates: int | None = None
    best_value: float = 0.0
    worse: int = 0

    def spent(self, config: TrainerConfig) -> float:
        """Share of the budget that is used, whichever budget it is."""
        if config.updates is not None:
            return self.updates / config.updates
        return self.seconds / (config.minutes * 60)

    def stopped(self, config: TrainerConfig) -> bool:
        """Whether acceptance has not risen for too long."""
        return 0 < config.patience <= self.worse

    def due(self, config: TrainerConfig, watched: bool) -> bool:
        """Whether these weights are to be measured now.

        Depends on nothing but the saved state, so that a resumed run measures when it would have.

        Args:
            config: The knobs.
            watched: Whether measurements choose weights. Then the first is made before any update.
        """
        if self.measured_updates == self.updates:
            return False
        if self.spent(config) >= 1 or (watched and self.measured_updates < 0):
            return True
        if config.measure_updates:
            return self.updates - max(0, self.measured_updates) >= config.measure_updates
        return 0 < config.measure_minutes * 60 <= self.seconds - self.measured_seconds

    def is_better(self, watched: dict[str, float]) -> bool:
        """Whether a measurement beats the best; equal ones do not, so that the earliest is kept."""
        return self.best_updates is None or watched[SELECTS] > self.best_value

    def note(self, validation: dict[str, float], watched: dict[str, float], peak: float) -> None:
        """Takes in a measurement of the current weights.

        Args:
            validation: Figures of the texts set aside.
            watched: Figures of decoding them; empty where nothing watches.
            peak: What a matrix product reaches here and now, GFLOP/s.
        """
        self.measured_updates, self.measured_seconds = self.updates, self.seconds
        entries = [validation]
        if watched:
            if self.is_better(watched):
                self.best_updates, self.best_value, self.worse = self.updates, watched[SELECTS], 0
            else:
                self.worse += 1
            assert self.best_updates is not None
            best = {"best_updates": self.best_updates, f"best_{SELECTS}": self.best_value}
            entries += [watched, best]
        seconds = max(self.seconds, 1e-9)
        where = {
            "updates": self.updates,
            "minutes": round(self.seconds / 60, 2),
            "response_tokens": self.response_tokens,
            "tokens_per_second": round(self.response_tokens / seconds, 1),
            "gflops": round(1000 * self.tera_flops / seconds, 1),
            "matmul_peak_gflops": round(peak, 1),
        }
        self.history += [where | entry for entry in entries]
