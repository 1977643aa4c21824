"""Settings of all trainers, and hyperparameters of all agents: routers first, then schedulers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.seeds import check_seed
from draftgym.envs.reward import GOODPUT


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """What every trainer takes that learns by playing rounds.

    Attributes:
        traces: Folder of traces to train on (`draftgym collect`).
        run: Run folder; resumed when it exists.
        algorithm: Which of Stable-Baselines3's.
        rounds: Rounds to train for, over all resumed sessions.
        minutes: Stop earlier when this much time has passed; the run can be resumed.
        validation: Share of the texts set aside to choose the best policy by.
        threads: CPU threads; default: all cores.
        seed: Seed of everything random.
    """

    traces: Path
    run: Path
    algorithm: str = "ppo"
    rounds: int | None = None
    minutes: float | None = None
    validation: float = 0.1
    threads: int | None = None
    seed: int = 0

    @property
    def agent(self) -> Hyperparameters:
        """Hyperparameters of the algorithm that is asked for; each trainer has its own.

        Settings of a study (`TuneArgs`) have none: it draws them for every trial.
        """
        raise NotImplementedError

    def check(self, algorithms: Collection[str], price: float | str, option: str) -> None:
        """Raises `DraftgymError` for settings that cannot work, before anything is loaded.

        Args:
            algorithms: Those there are.
            price: What a unit of time costs, in tokens.
            option: Which option that is.
        """
        if self.algorithm not in algorithms:
            raise DraftgymError(
                f"unknown algorithm {self.algorithm!r}", f"choose from {', '.join(algorithms)}"
            )
        check_seed(self.seed)
        if self.rounds is not None and self.rounds < 1:
            raise DraftgymError(f"--rounds is {self.rounds}", "train for at least one round")
        if self.minutes is not None and not self.minutes >= 0:
            raise DraftgymError(
                f"--minutes is {self.minutes}", "give zero or more, or leave it out"
            )
        if not 0 < self.validation < 1:
            raise DraftgymError(f"--validation is {self.validation}", "give a share such as 0.1")
        if price != GOODPUT and (isinstance(price, str) or not price >= 0):
            raise DraftgymError(f"{option} is {price}", f"give {GOODPUT} or a number of at least 0")


@dataclass(frozen=True)
class Hyperparameters:
    """What every agent has.

    Attributes:
        n_envs: Episodes (of schedulers: cells) that are played side by side.
        batch_size: Minibatch of an update, in rounds.
        learning_rate: Adam's step size, falling linearly to zero.
        gamma: Discount. A choice is felt within a few rounds, so a short horizon loses little and
            tames the variance of a long text.
        width: Of the network's layers.
    """

    n_envs: int = 256
    batch_size: int = 512
    learning_rate: float = 1e-3
    gamma: float = 0.2
    width: int = 64

    def for_sb3(self, *ours: str) -> dict[str, Any]:
        """Arguments of SB3's constructors: without `n_envs`, `width` and what is named.

        The learning rate becomes a schedule that falls linearly to zero.
        """
        from stable_baselines3.common.utils import LinearSchedule

        made = {k: v for k, v in asdict(self).items() if k not in {"n_envs", "width", *ours}}
        return made | {"learning_rate": LinearSchedule(self.learning_rate, 0.0, 1.0)}


@dataclass(frozen=True)
class PPOSettings(Hyperparameters):
    """What every PPO has.

    Attributes:
        n_steps: Rounds of each episode per update.
        n_epochs: Passes over the rounds of an update.
        weight_decay: Of AdamW: texts come again, and must not be learned by heart.
        gae_lambda: Bias-variance knob of the advantage estimate.
        ent_coef: Entropy bonus: keeps everything tried.
        clip_range: PPO's clipping.
        vf_coef: Weight of the value loss.
        max_grad_norm: Gradient clipping.
    """

    n_steps: int = 16
    n_epochs: int = 4
    weight_decay: float = 1e-2
    gae_lambda: float = 0.9
    ent_coef: float = 0.01
    clip_range: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5

    def check(self, option: str) -> None:
        """Raises `DraftgymError` where an update has too few rounds to learn from."""
        if self.n_steps * self.n_envs < 2 or self.batch_size < 2:
            raise DraftgymError("an update needs at least two rounds", f"raise --{option}.n-steps")


@dataclass(frozen=True)
class RouterEncoder:
    """The network that policies keep; its features go into one linear layer of scores.

    Attributes:
        width: Features of the encoder.
        neck: What it narrows the hidden state to.
        dropout: Share of the hidden state that is left out at random while learning.
    """

    width: int = 64
    neck: int = 16
    dropout: float = 0.8


@dataclass(frozen=True)
class RouterPPO(PPOSettings, RouterEncoder):
    """PPO; the defaults are for traces, where rounds are cheap and many episodes run side by side.

    Attributes:
        n_envs: Episodes side by side (traces only; live decoding has one).
    """

    n_envs: int = 512
    batch_size: int = 2048


LIVE_PPO = RouterPPO(n_envs=1, n_steps=256, batch_size=64, n_epochs=8)
"""PPO on live decoding, where a round costs tens of milliseconds and must be learned from well."""


@dataclass(frozen=True)
class RouterDQN(Hyperparameters, RouterEncoder):
    """DQN on traces.

    Attributes:
        buffer_size: Rounds remembered; each takes about 5 kB.
        learning_starts: Rounds before the first update.
        gradient_steps: Updates after each round of all episodes.
        weight_decay: Of AdamW.
        target_update_interval: Rounds between copies to the target network.
        exploration_fraction: Part of training over which random choices fade out.
        exploration_final_eps: Share of random choices that stays.
        max_grad_norm: Gradient clipping.
    """

    buffer_size: int = 50_000
    learning_starts: int = 5_000
    gradient_steps: int = 4
    weight_decay: float = 1e-1
    target_update_interval: int = 5_000
    exploration_fraction: float = 0.3
    exploration_final_eps: float = 0.05
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class BeliefFit:
    """Fitting a scheduler's beliefs to what was accepted, before reinforcement learning.

    Attributes:
        rounds: Rounds of every cell that are looked at; 0 leaves the network as it is.
        epochs: Passes over them.
        batch_size: Cells of a step.
        learning_rate: AdamW's step size, falling linearly to zero.
        weight_decay: Of AdamW.
        dropout: Share of hidden units that is left out at random: texts come again, and must not be
            learned by heart.
    """

    rounds: int = 96
    epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    dropout: float = 0.2


@dataclass(frozen=True)
class SchedulerPPO(PPOSettings):
    """PPO for many users. Rounds are of whole cells.

    Attributes:
        ent_coef: Entropy bonus, for the sum of all users' entropies; lengths that are learned from
            nothing want some (0.001).
        clip_range: PPO's clipping, of the product of all users' ratios.
        target_kl: An update ends early when the policy has moved that far, nats for all users.
        spread: Standard deviation of beliefs at first, on the scale from -1 to 1.
        tilt_spread: The same of tilts; a wide one hides their gain behind noise.
    """

    batch_size: int = 1024
    n_epochs: int = 3
    weight_decay: float = 1e-3
    ent_coef: float = 0.0
    target_kl: float = 0.03
    spread: float = 0.1
    tilt_spread: float = 0.015


@dataclass(frozen=True)
class SchedulerSAC(Hyperparameters):
    """SAC for many users.

    Attributes:
        buffer_size: Rounds remembered; with 8 users each takes about 1.7 kB.
        learning_starts: Rounds of random actions before the first update.
        gradient_steps: Updates after each round of all cells.
        tau: How far target critics move per update.
        target_entropy: Entropy that the actor is held to, nats per number of the action: -1 is
            SB3's usual, lower explores less.
    """

    n_envs: int = 64
    batch_size: int = 256
    buffer_size: int = 100_000
    learning_starts: int = 5_000
    gradient_steps: int = 4
    tau: float = 0.01
    target_entropy: float = -1.0
