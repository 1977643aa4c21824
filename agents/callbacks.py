"""What happens beside learning: metrics of decoding, saves, and the time budget.

* `DecodingMetrics` - acceptance length, share of each arm and tokens per second to TensorBoard
* `SaveRun` - the SB3 zip (to train on) and the exported policy (to deploy), now and then
* `StopAfter` - ends training when the minutes are up
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback


class DecodingMetrics(BaseCallback):
    """Logs what the rounds of each update did."""

    def _on_rollout_start(self) -> None:
        self.arms: Counter[str] = Counter()
        self.committed = 0
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            self.arms[info["arm"]] += 1
            self.committed += info["committed"]
        return True

    def _on_rollout_end(self) -> None:
        rounds = self.arms.total()
        seconds = time.perf_counter() - self.start
        self.logger.record("charts/acceptance_length", self.committed / rounds)
        self.logger.record("charts/tokens_per_second", self.committed / seconds)
        for arm in sorted(self.arms):
            self.logger.record(f"arms/{arm.replace(':', '_')}", self.arms[arm] / rounds)


class SaveRun(BaseCallback):
    """Saves after every few updates and at the end.

    Args:
        save: Writes everything; called with nothing.
        minutes: Least time between saves.
    """

    def __init__(self, save: Callable[[], None], minutes: float = 1.0) -> None:
        super().__init__()
        self.save, self.minutes = save, minutes
        self.saved = time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:  # right after an update: weights and counters agree
        if time.monotonic() - self.saved > self.minutes * 60:
            self.save()
            self.saved = time.monotonic()


class StopAfter(BaseCallback):
    """Ends training after so many minutes.

    Args:
        minutes: The budget, or None for none.
    """

    def __init__(self, minutes: float | None) -> None:
        super().__init__()
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def _on_step(self) -> bool:
        return self.deadline is None or time.monotonic() < self.deadline
