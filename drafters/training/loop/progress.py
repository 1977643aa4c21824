"""Where a training run stands: what is spent, what was measured, which weights are the best."""

from __future__ import annotations

from dataclasses import dataclass, field

from draftgym.drafters.training.loop.schedule import TrainerConfig

SELECTS = "acceptance_length"
"""The figure that decides which weights are the best; longer is better."""


@dataclass
class Progress:
    """State of a run, apart from its weights; saved and restored.

    Attributes:
        updates: Updates so far.
        seconds: Seconds spent in them.
        response_tokens: Response tokens visited.
        tera_flops: Operations of all matrix products.
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
