"""Hyperparameters of all agents, in one place: routers first, then schedulers."""

from __future__ import annotations

from dataclasses import dataclass


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
class RouterPPO(RouterEncoder):
    """PPO; the defaults are for traces, where rounds are cheap and many episodes run side by side.

    Attributes:
        n_envs: Episodes side by side (traces only; live decoding has one).
        n_steps: Rounds of each episode per update.
        batch_size: Minibatch of an update.
        n_epochs: Passes over the rounds of an update.
        learning_rate: Adam's step size, falling linearly to zero.
        weight_decay: Of AdamW: texts come again, and must not be learned by heart.
        gamma: Discount. A choice is felt within a few rounds, so a short horizon loses little and
            tames the variance of a long text.
        gae_lambda: Bias-variance knob of the advantage estimate.
        ent_coef: Entropy bonus: keeps every arm tried.
        clip_range: PPO's clipping.
        vf_coef: Weight of the value loss.
        max_grad_norm: Gradient clipping.
    """

    n_envs: int = 512
    n_steps: int = 16
    batch_size: int = 2048
    n_epochs: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    gamma: float = 0.2
    gae_lambda: float = 0.9
    ent_coef: float = 0.01
    clip_range: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


LIVE_PPO = RouterPPO(n_envs=1, n_steps=256, batch_size=64, n_epochs=8)
"""PPO on live decoding, where a round costs tens of milliseconds and must be learned from well."""


@dataclass(frozen=True)
class RouterDQN(RouterEncoder):
    """DQN on traces.

    Attributes:
        n_envs: Episodes side by side.
        buffer_size: Rounds remembered; each takes about 5 kB.
        learning_starts: Rounds before the first update.
        batch_size: Minibatch of an update.
        gradient_steps: Updates after each round of all episodes.
        learning_rate: Adam's step size, falling linearly to zero.
        weight_decay: Of AdamW.
        gamma: Discount; see `RouterPPO`.
        target_update_interval: Rounds between copies to the target network.
        exploration_fraction: Part of training over which random choices fade out.
        exploration_final_eps: Share of random choices that stays.
        max_grad_norm: Gradient clipping.
    """

    n_envs: int = 256
    buffer_size: int = 50_000
    learning_starts: int = 5_000
    batch_size: int = 512
    gradient_steps: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-1
    gamma: float = 0.2
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
class SchedulerPPO:
    """PPO for many users. Rounds are of whole cells.

    Attributes:
        width: Of the network's layers.
        n_envs: Cells side by side.
        n_steps: Rounds of each cell per update.
        batch_size: Minibatch of an update, in rounds.
        n_epochs: Passes over the rounds of an update.
        learning_rate: Adam's step size, falling linearly to zero.
        weight_decay: Of AdamW.
        gamma: Discount. A draft is judged in the round that it is made for; what is left of it
            later is where a text stands.
        gae_lambda: Bias-variance knob of the advantage estimate.
        ent_coef: Entropy bonus, for the sum of all users' entropies; lengths that are learned from
            nothing want some (0.001).
        clip_range: PPO's clipping, of the product of all users' ratios.
        target_kl: An update ends early when the policy has moved that far, nats for all users.
        vf_coef: Weight of the value loss.
        max_grad_norm: Gradient clipping.
        spread: Standard deviation of beliefs at first, on the scale from -1 to 1.
    """

    width: int = 64
    n_envs: int = 256
    n_steps: int = 16
    batch_size: int = 1024
    n_epochs: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    gamma: float = 0.2
    gae_lambda: float = 0.9
    ent_coef: float = 0.0
    clip_range: float = 0.2
    target_kl: float = 0.03
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    spread: float = 0.1


@dataclass(frozen=True)
class SchedulerSAC:
    """SAC for many users.

    Attributes:
        width: Of the network's layers.
        n_envs: Cells side by side.
        buffer_size: Rounds remembered; with 8 users each takes about 1.7 kB.
        learning_starts: Rounds of random actions before the first update.
        batch_size: Minibatch of an update, in rounds.
        gradient_steps: Updates after each round of all cells.
        learning_rate: Adam's step size, falling linearly to zero.
        gamma: Discount; see `SchedulerPPO`.
        tau: How far target critics move per update.
        target_entropy: Entropy that the actor is held to, nats per number of the action: -1 is
            SB3's usual, lower explores less.
    """

    width: int = 64
    n_envs: int = 64
    buffer_size: int = 100_000
    learning_starts: int = 5_000
    batch_size: int = 256
    gradient_steps: int = 4
    learning_rate: float = 1e-3
    gamma: float = 0.2
    tau: float = 0.01
    target_entropy: float = -1.0
