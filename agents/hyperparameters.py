"""Hyperparameters of the router agent, all in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RouterPPO:
    """PPO on live decoding, where a step costs tens of milliseconds and samples are few.

    Attributes:
        n_steps: Rounds per update.
        batch_size: Minibatch of an update.
        n_epochs: Passes over the rounds of an update; high, because rounds are dear.
        learning_rate: Adam's step size.
        gamma: Discount. A choice is felt within a few rounds (staleness of the other drafter), so
            a short horizon loses little and tames the variance of a long text.
        gae_lambda: Bias-variance knob of the advantage estimate.
        ent_coef: Entropy bonus: keeps every arm tried.
        clip_range: PPO's clipping.
        vf_coef: Weight of the value loss.
        max_grad_norm: Gradient clipping.
        width: Features of the encoder.
    """

    n_steps: int = 256
    batch_size: int = 64
    n_epochs: int = 8
    learning_rate: float = 1e-3
    gamma: float = 0.5
    gae_lambda: float = 0.9
    ent_coef: float = 0.01
    clip_range: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    width: int = 64
