"""The skeleton of all trainers that learn by playing: traces -> train -> the best policy, exported.

A run folder has

* `config.json` - settings, command, revision, versions
* `metrics.jsonl` and TensorBoard's events - what was logged
* `model.zip` - Stable-Baselines3's, to go on training; with the replay buffer until the run is
  done (up to 250 MB for a router's DQN, 170 MB for a scheduler's SAC of 8 users)
* `policy/` - the deployable policy: the best by validation, where there is one
* `best.json` - how good that is
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from draftgym.agents.common.callbacks import BesideLearning, make_logger
from draftgym.agents.common.settings import TrainArgs
from draftgym.agents.common.state import (
    read_state,
    restore_buffer,
    restore_generators,
    write_agent,
)
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import replacing, write_json, write_text
from draftgym.decoding.model.fingerprint import is_sampled, other_target
from draftgym.decoding.model.precision import usable_cores
from draftgym.decoding.provenance import command_line, describe_host, git_revision, plain
from draftgym.policies.folder import BODY, PolicyTarget, read_body
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.shards import shards_in
from draftgym.rollouts.traces.trace import TraceSet

MODEL, POLICY, BEST = "model.zip", "policy", "best.json"
NOTHING = float("-inf")
"""The figure of a run that has validated nothing."""
KINDS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "dqn": DQN, "sac": SAC}
"""Algorithms by the name that users write."""

Policy = TypeVar("Policy")


class Counts(Protocol):
    """What counts rounds while they are played."""

    def forget_counts(self) -> None:
        """Starts the counts anew."""


class Trainer(ABC, Generic[Policy]):
    """Trains an agent and keeps the best policy; subclasses say what differs.

    A subclass sets the attributes and ends its `__init__` with `self.agent = self.make_agent()`.

    Attributes:
        args: Settings.
        run: Run folder, resumed when it exists; None keeps everything in memory.
        rounds: Rounds in all, earlier sessions included.
        target: Whom the policy is for.
        env: What the agent plays.
        counts: What counts the rounds for `charts`.
        figure: What `validate` measures; more is better.
        usual_speed: Rounds per second on a quiet machine, to say beforehand how long it takes.
        log_interval: See SB3's `learn`.
        agent: What is trained.
    """

    args: TrainArgs
    run: Path | None
    rounds: int
    target: PolicyTarget
    env: VecEnv
    counts: Counts
    figure: str
    usual_speed: float
    log_interval: int
    agent: Any
    _best: float | None = None
    _kept: Policy | None = None

    @abstractmethod
    def fresh_agent(self) -> Any:
        """An agent of Stable-Baselines3 that has played nothing here."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Entries of `policy.json` that a run must share to be resumed."""

    @abstractmethod
    def policy(self) -> Policy:
        """A copy of what acts, in deployable form."""

    @abstractmethod
    def validate(self) -> float | None:
        """How good the policy is on the texts set aside; None where there are none."""

    def episodes(self) -> Any:
        """Where the episodes stand, to go on with; None where they cannot be kept."""
        return None

    def world(self) -> Any:
        """What the episodes are of: those of another world do not go on in this one.

        Asked only of trainers whose `episodes` keeps any; the same holds for `go_on`.
        """
        raise NotImplementedError

    def go_on(self, episodes: Any) -> None:
        """Puts the episodes of `env` where these stand."""
        raise NotImplementedError

    @abstractmethod
    def charts(self, seconds: float) -> dict[str, float]:
        """What to log of the rounds counted in these seconds; nothing while they are few."""

    @abstractmethod
    def write(self, policy: Policy, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Writes the deployable form."""

    @abstractmethod
    def card(self, validated: float | None) -> str:
        """The card beside it: what it is, how it was made, how to use it."""

    def train(self) -> None:
        """Trains up to `rounds`; saves whatever happens.

        Raises:
            DraftgymError: The run folder cannot be written.
        """
        args, done = self.args, self.agent.num_timesteps
        if self.run is not None:
            self.run.mkdir(parents=True, exist_ok=True)
            self.write_config(self.run)
        self.agent.set_logger(make_logger(self.run))
        print(f"{done} of {self.rounds} rounds done{self._estimate(self.rounds - done)}")
        torch.set_num_threads(args.threads or usable_cores())  # SB3 leaves its own setting behind
        try:
            if done < self.rounds:
                self.agent.learn(
                    self.rounds - done,
                    BesideLearning(self),
                    log_interval=self.log_interval,
                    reset_num_timesteps=False,
                    progress_bar=True,
                )
        finally:
            self.save()
            self.agent.logger.close()
        if self.run is not None:
            print(f"{self.agent.num_timesteps} rounds; policy exported to {self.run / POLICY}")

    def best_policy(self) -> Policy:
        """The best by validation of this session; the latest where nothing was validated."""
        return self.policy() if self._kept is None else self._kept

    def judge(self, value: float) -> None:
        """Keeps the policy if this is the best `figure` so far, in earlier sessions too."""
        if self._best is None:
            self._best = self._best_before()
        if value <= self._best:
            return
        self._best, self._kept = value, self.policy()
        if self.run is not None:
            self.export(self._kept, value)
            write_json(self.run / BEST, {self.figure: value}, None)

    def save(self) -> None:
        """Saves what training goes on from; the policy too, where nothing tells which is best."""
        if self.run is None:
            return
        with replacing(self.run / MODEL) as partial:
            unfinished = self.agent.num_timesteps < self.rounds
            episodes = self.episodes()
            kept = None if episodes is None else (self.world(), episodes)
            write_agent(self.agent, partial, kept, with_buffer=unfinished)
        if self._best_before() == NOTHING:
            self.export(self.policy(), None)

    def export(self, policy: Policy, validated: float | None) -> None:
        """Writes a policy in deployable form, with its card, into the run folder.

        Args:
            policy: The policy.
            validated: Its `figure`; None if unknown.
        """
        assert self.run is not None
        provenance = {
            "settings": plain(asdict(self.args)),
            "rounds": self.agent.num_timesteps,
            f"validation_{self.figure}": validated,
            "host": describe_host(),
        }
        self.write(policy, self.run / POLICY, provenance)
        write_text(self.run / POLICY / "README.md", self.card(validated))

    def write_config(self, folder: Path) -> None:
        """Writes `config.json`."""
        target = {"target": self.target.name, "fingerprint": self.target.fingerprint}
        body = {"settings": plain(asdict(self.args)), **target, **describe_host()}
        write_json(folder / "config.json", body)

    def make_agent(self) -> Any:
        """A fresh agent, or the run folder's with the hyperparameters it was started with.

        A run that is cut learns as one that is not: buffer, generators and episodes go on. Where
        episodes were not kept (live decoding), it gets new ones, of other seeds than its first; and
        an empty buffer fills before it teaches.

        Raises:
            DraftgymError: The folder's run chooses among other things or has another target, or
                its file is damaged or an older version's.
        """
        if self.run is None or not (self.run / MODEL).exists():
            return self.fresh_agent()
        agent = self.load_agent(self.run)
        with self._naming(self.run):
            state = read_state(self.run / MODEL)
            buffer, episodes = state.get("buffer"), state.get("episodes")
            if buffer is not None:
                restore_buffer(agent, buffer)
            elif hasattr(agent, "learning_starts"):
                agent.learning_starts = agent.num_timesteps + getattr(
                    self.args.agent, "learning_starts", 0
                )
            if episodes is None or episodes[0] != self.world():
                agent._last_obs = None  # SB3 resets then
                agent.set_random_seed(self.args.seed + agent.num_timesteps)
            else:
                self.go_on(episodes[1])
                restore_generators(agent, state["random"])
        return agent

    def load_agent(self, run: Path, **changes: Any) -> Any:
        """The saved agent of a run with the same `identity`; see `make_agent`.

        Args:
            run: Its folder.
            changes: Hyperparameters that replace the saved ones.
        """
        self._check_identity(run)
        with self._naming(run):
            algorithm = KINDS[self.args.algorithm]
            return algorithm.load(
                run / MODEL, env=self.env, device="cpu", force_reset=bool(changes), **changes
            )

    @contextmanager
    def _naming(self, run: Path) -> Iterator[None]:
        """Says of which file an error comes."""
        try:
            yield
        except DraftgymError:
            raise
        except Exception as error:  # SB3 raises many kinds for a damaged or foreign zip
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise DraftgymError(
                f"cannot resume from {run / MODEL}: {reason}",
                "its arms, target or algorithm differ from these settings, an older version wrote "
                "it, or it is damaged; name another --run",
            ) from error

    def _estimate(self, rounds: int) -> str:
        if rounds <= 0:
            return ""
        minutes = rounds / self.usual_speed / 60
        if self.args.minutes is not None:
            minutes = min(minutes, self.args.minutes)
        return f"; the others take about {max(minutes, 0.1):.1f} minutes, longer on a busy machine"

    def _check_identity(self, run: Path) -> None:
        """Networks may fit and still mean something else."""
        if not (run / POLICY / BODY).is_file():
            return
        body = read_body(run / POLICY)
        for name, wanted in self.identity().items():
            found = body.get(name)
            if found != wanted and is_sampled(found):
                key = f"{name} in its {POLICY}/{BODY}"
                remedy = "collect traces anew and name another --run"
                raise other_target(str(run), found, self.target, key, remedy)
            if found != wanted:
                raise DraftgymError(
                    f"{run} was trained with {name} {_text(found)}, asked for: {_text(wanted)}",
                    "give the same settings and traces, or name another --run",
                )

    def _best_before(self) -> float:
        """The `figure` of the exported policy, which is where a kill cannot separate the two."""
        if self.run is None or not (self.run / POLICY / BODY).is_file():
            return NOTHING
        made = read_body(self.run / POLICY).get("provenance")
        value = made.get(f"validation_{self.figure}") if isinstance(made, dict) else None
        return float(value) if isinstance(value, int | float) else NOTHING


def open_traces(folder: Path, remedy: str, mapped: bool = False) -> TraceSet:
    """Reads traces; nothing is collected unasked.

    Args:
        folder: Where they should be.
        remedy: How to get them, and how long that takes.
        mapped: Whether they stay on disk.

    Raises:
        DraftgymError: There are none, or they are damaged.
    """
    if not folder.is_dir() or not shards_in(folder):
        raise DraftgymError(f"no traces in {folder}", remedy)
    return read_traces(folder, mapped)


def write_card(title: str, what: str, rows: Mapping[str, str], usage: str) -> str:
    """A policy's card: a title, a sentence, a table of facts, and how to use it."""
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# {title}

{what}

| | |
|---|---|
{table}
| made by | `{command_line()}` at revision `{git_revision()}` |

{usage}
"""


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
