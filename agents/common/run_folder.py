"""Run folders of reinforcement learning, the same for routers and schedulers.

* `config.json` - settings, command, revision, versions
* `metrics.jsonl` and TensorBoard's events - what was logged
* `model.zip` - Stable-Baselines3's, to go on training
* `policy/` - the deployable policy: the best by validation, where there is one
* `best.json` - how good that is
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import JSONOutputFormat, Logger, TensorBoardOutputFormat

from draftgym.agents.common.callbacks import BestPolicy, SaveRun, StopAfter
from draftgym.decoding.model.precision import usable_cores
from draftgym.decoding.provenance import describe_host, plain

MODEL, POLICY, BEST = "model.zip", "policy", "best.json"
CHARTS = ("learning_rate", "clip_range", "n_updates")
"""What SB3 logs beside losses."""


@dataclass
class RunFolder:
    """A run folder that is being written.

    Attributes:
        folder: Where it lies.
        agent: What is trained.
        export: Writes the deployable policy into `policy/`, told how good it is (None: unknown).
        figure: What validation measures; more is better.
        validate: Measures it; None where nothing tells which policy is best.
    """

    folder: Path
    agent: BaseAlgorithm
    export: Callable[[float | None], None]
    figure: str
    validate: Callable[[], float] | None

    def learn(
        self,
        rounds: int,
        metrics: Sequence[BaseCallback],
        minutes: float | None,
        threads: int | None,
        log_interval: int,
    ) -> None:
        """Trains up to so many rounds, earlier sessions included; saves whatever happens.

        Args:
            rounds: Rounds in all.
            metrics: Callbacks that log.
            minutes: See `StopAfter`.
            threads: CPU threads; None for all cores.
            log_interval: See SB3's `learn`.
        """
        done = self.agent.num_timesteps
        torch.set_num_threads(threads or usable_cores())  # SB3 leaves its own setting behind
        try:
            if done < rounds:
                self.agent.learn(
                    rounds - done,
                    CallbackList([*metrics, *self._callbacks(minutes)]),
                    log_interval=log_interval,
                    reset_num_timesteps=False,
                    progress_bar=True,
                )
        finally:
            self.save()
            self.agent.logger.close()
        print(f"{self.agent.num_timesteps} rounds; policy exported to {self.folder / POLICY}")

    def save(self) -> None:
        """Saves what training goes on from; the policy too, where nothing tells which is best."""
        partial = self.folder / "model.partial.zip"
        self.agent.save(partial)
        partial.replace(self.folder / MODEL)
        if self.validate is None or not (self.folder / POLICY).is_dir():
            self.export(None)

    def _callbacks(self, minutes: float | None) -> list[BaseCallback]:
        callbacks: list[BaseCallback] = [SaveRun(self.save), StopAfter(minutes)]
        if self.validate is not None:
            best = self._best_so_far()
            callbacks.append(BestPolicy(self.validate, self.figure, self._keep, best=best))
        return callbacks

    def _keep(self, value: float) -> None:
        """Exports the policy as the best so far."""
        self.export(value)
        (self.folder / BEST).write_text(json.dumps({self.figure: value}) + "\n")

    def _best_so_far(self) -> float:
        path = self.folder / BEST
        return float(json.loads(path.read_text())[self.figure]) if path.is_file() else 0.0


def log_to(folder: Path, agent: BaseAlgorithm) -> None:
    """Makes the folder; what the agent logs goes there."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [TensorBoardOutputFormat(str(folder)), MetricLines(folder / "metrics.jsonl")]
    agent.set_logger(PlainNames(str(folder), outputs))


def write_config(folder: Path, settings: Any, facts: Mapping[str, Any]) -> None:
    """Writes `config.json`.

    Args:
        folder: The run folder.
        settings: A dataclass, possibly nested.
        facts: What else there is to know, such as the target.
    """
    body = {"settings": plain(asdict(settings)), **facts, **describe_host()}
    (folder / "config.json").write_text(json.dumps(body, indent=2) + "\n")


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
