"""What happens beside learning: metrics of rounds, choice of the best policy, saves, time budget.

* `DecodingMetrics` - acceptance length, speed and share of each arm to TensorBoard
* `BestPolicy` - plays texts that were set aside and keeps the policy that is fastest there
* `SaveRun` - the SB3 zip (to train on) and the exported policy (to deploy), now and then
* `StopAfter` - ends training when the minutes are up
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.network import deployable_network
from agents.replay_vec_env import ReplayVecEnv
from decoding.arms import Arm
from policies.learned import LearnedPolicy
from rollouts.replay_evaluation import play_policy
from rollouts.trace import TraceSet


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


class BestPolicy(BaseCallback):
    """Plays the validation texts now and then; calls `keep` when the policy is the fastest so far.

    Args:
        traces: The texts.
        arms: What the agent chooses from.
        keep: Called with the best speed so far, in tokens per target step.
        rounds: Rounds between two looks.
        best: Best speed of an earlier session.
    """

    def __init__(
        self,
        traces: TraceSet,
        arms: Sequence[Arm],
        keep: Callable[[float], None],
        rounds: int = 50_000,
        best: float = 0.0,
    ) -> None:
        super().__init__()
        self.traces, self.arms, self.keep = traces, tuple(arms), keep
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
        """Plays the texts and judges."""
        self.looked = self.num_timesteps
        policy = LearnedPolicy(deployable_network(self.model), self.arms)  # type: ignore[arg-type]
        played = play_policy(self.traces, policy)
        speed = sum(text.tokens for text in played) / sum(text.steps for text in played)
        self.logger.record("validation/tokens_per_target_step", speed)
        if speed > self.best:
            self.best = speed
            self.keep(speed)


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
