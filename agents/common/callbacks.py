"""What happens beside learning: charts, the choice of the best policy, saves, the time budget."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import JSONOutputFormat, Logger, TensorBoardOutputFormat

if TYPE_CHECKING:
    from draftgym.agents.common.trainer import Trainer

CHARTS = ("learning_rate", "clip_range", "n_updates")
"""What SB3 logs beside losses."""


class BesideLearning(BaseCallback):
    """Does a trainer's work between its agent's updates.

    Args:
        trainer: Whose.
        validate_rounds: Rounds between two looks at the texts set aside; also at the end.
        save_minutes: Least time between saves.
    """

    def __init__(
        self, trainer: Trainer[Any], validate_rounds: int = 50_000, save_minutes: float = 1.0
    ) -> None:
        super().__init__()
        self.trainer = trainer
        self.validate_rounds, self.save_seconds = validate_rounds, 60 * save_minutes
        self.validated = -validate_rounds
        self.saved = started = time.monotonic()
        minutes = trainer.args.minutes
        self.deadline = None if minutes is None else started + 60 * minutes

    def _on_training_start(self) -> None:
        if self.num_timesteps:  # earlier sessions looked in between
            self.validated = self.num_timesteps - self.num_timesteps % self.validate_rounds
        self._count_anew()

    def _on_step(self) -> bool:
        return self.deadline is None or time.monotonic() < self.deadline

    def _on_rollout_start(self) -> None:  # right after an update: weights and counters agree
        if time.monotonic() - self.saved > self.save_seconds:
            self.trainer.save()
            self.saved = time.monotonic()
        if self.num_timesteps - self.validated >= self.validate_rounds:
            self._validate()

    def _on_rollout_end(self) -> None:
        charts = self.trainer.charts(time.perf_counter() - self.counting_since)
        for name, value in charts.items():
            self.logger.record(name, value)
        if charts:
            self._count_anew()

    def _on_training_end(self) -> None:
        self._validate()

    def _validate(self) -> None:
        self.validated = self.num_timesteps
        value = self.trainer.validate()
        if value is not None:
            self.logger.record(f"validation/{self.trainer.figure}", value)
            self.trainer.judge(value)

    def _count_anew(self) -> None:
        self.trainer.counts.forget_counts()
        self.counting_since = time.perf_counter()


def make_logger(folder: Path | None) -> Logger:
    """SB3's logger of a run: TensorBoard and `metrics.jsonl`, or nothing without a folder."""
    if folder is None:
        return PlainNames(None, [])
    outputs = [TensorBoardOutputFormat(str(folder)), MetricLines(folder / "metrics.jsonl")]
    return PlainNames(str(folder), outputs)


class PlainNames(Logger):
    """SB3's logger with the names that all trainers here use: `losses/`, and `charts/`."""

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        """Logs a value; see SB3's `Logger.record`."""
        group, _, name = key.partition("/")
        if group == "train":
            key = f"charts/{name}" if name in CHARTS else f"losses/{name}"
        super().record(key, value, exclude)


class MetricLines(JSONOutputFormat):
    """Metrics as JSON lines, appended: SB3's own writer empties the file of a resumed run."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")
