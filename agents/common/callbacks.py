"""What happens beside learning: metrics of rounds, choice of the best policy, saves, time budget.

* `DecodingMetrics` - acceptance length, speed and share of each arm to TensorBoard
* `SchedulerMetrics` - goodput, draft length and speed of training
* `BestPolicy` - measures the policy on texts that were set aside and keeps the best
* `SaveRun` - the SB3 zip (to train on) and the exported policy (to deploy), now and then
* `StopAfter` - ends training when the minutes are up
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from draftgym.agents.router.vec_env import ReplayVecEnv
from draftgym.agents.scheduler.vec_env import SchedulerVecEnv
from draftgym.decoding.arms import Arm


class DecodingMetrics(BaseCallback):
    """Logs what the rounds did, about every so many of them.

    Args:
        arms: What the agent chooses from.
        rounds: Least rounds between two entries.
    """

    def __init__(self, arms: Sequence[Arm], rounds: int) -> None:
        super().__init__()
        self.arms, self.rounds = [str(arm) for arm in arms], rounds

    def _on_training_start(self) -> None:
        self._forget()

    def _on_step(self) -> bool:
        env = self.training_env
        if isinstance(env, ReplayVecEnv):  # counts by itself: infos of 512 episodes are slow
            self.played, self.tokens, self.steps = env.played, env.tokens, env.steps
        else:
            for info in self.locals["infos"]:
                self.played[self.arms.index(info["arm"])] += 1
                self.tokens += info["committed"]
                self.steps += info["target_steps"]
        return True

    def _on_rollout_end(self) -> None:
        rounds = int(self.played.sum())
        if rounds < self.rounds:
            return
        seconds = time.perf_counter() - self.start
        self.logger.record("charts/acceptance_length", self.tokens / rounds)
        self.logger.record("charts/tokens_per_target_step", self.tokens / self.steps)
        self.logger.record("charts/rounds_per_second", rounds / seconds)
        for arm, count in zip(self.arms, self.played.tolist(), strict=True):
            self.logger.record(f"arms/{arm.replace(':', '_')}", count / rounds)
        self._forget()

    def _forget(self) -> None:
        if isinstance(self.training_env, ReplayVecEnv):
            self.training_env.forget_counts()
        self.played = np.zeros(len(self.arms), dtype=np.int64)
        self.tokens = self.steps = 0.0
        self.start = time.perf_counter()


class SchedulerMetrics(BaseCallback):
    """Logs what the rounds of many cells did, about every so many of them.

    Args:
        env: The cells; they count by themselves.
        rounds: Least rounds of single users between two entries.
    """

    def __init__(self, env: SchedulerVecEnv, rounds: int = 5_000) -> None:
        super().__init__()
        self.env, self.rounds = env, rounds

    def _on_training_start(self) -> None:
        self._forget()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        env, seconds = self.env, time.perf_counter() - self.start
        if env.user_rounds < self.rounds:
            return
        figures = {
            "goodput": env.tokens / env.seconds,
            "acceptance_length": env.tokens / env.user_rounds,
            "draft_length": env.drafted / env.user_rounds,
            "accepted_share": (env.tokens - env.user_rounds) / max(env.drafted, 1.0),
            "price": env.reward.price,
            "user_rounds_per_second": env.user_rounds / seconds,
        }
        for name, value in figures.items():
            self.logger.record(f"charts/{name}", value)
        self._forget()

    def _forget(self) -> None:
        self.env.forget_counts()
        self.start = time.perf_counter()


class BestPolicy(BaseCallback):
    """Measures the policy now and then; calls `keep` when it is the best so far.

    Args:
        measure: How good the policy is on what was set aside; more is better.
        figure: What that is called, in logs under `validation/`.
        keep: Called with the best figure so far.
        rounds: Rounds between two looks.
        best: Best figure of an earlier session.
    """

    def __init__(
        self,
        measure: Callable[[], float],
        figure: str,
        keep: Callable[[float], None],
        rounds: int = 50_000,
        best: float = 0.0,
    ) -> None:
        super().__init__()
        self.measure, self.figure, self.keep = measure, figure, keep
        self.rounds, self.best = rounds, best
        self.looked = -rounds

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:  # right after an update
        if self.num_timesteps - self.looked >= self.rounds:
            self.look()

    def _on_training_end(self) -> None:
        self.look()

    def look(self) -> None:
        """Measures and judges."""
        self.looked = self.num_timesteps
        value = self.measure()
        self.logger.record(f"validation/{self.figure}", value)
        if value > self.best:
            self.best = value
            self.keep(value)


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
