"""SB3's view of the router network: the deployable encoder as its features extractor."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn
from torch.optim import AdamW

from draftgym.agents.common import settings
from draftgym.policies.routers.learned import RouterEncoder, RouterNetwork


class RouterExtractor(BaseFeaturesExtractor):
    """Wraps `RouterEncoder`, so that what is trained is what is exported.

    Args:
        observation_space: The router environment's.
        width: Features.
        neck: What the hidden state is narrowed to.
        dropout: Share of the hidden state that is left out at random while learning.
    """

    def __init__(
        self,
        observation_space: gym.spaces.Dict,
        width: int = 64,
        neck: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(observation_space, features_dim=width)
        signals, hidden = (_width(observation_space[key]) for key in ("signals", "hidden"))
        self.encoder = RouterEncoder(signals, hidden, width, neck, dropout)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Features `[n, width]`."""
        out: Tensor = self.encoder(observations["signals"], observations["hidden"])
        return out


def agent_arguments(made: settings.RouterPPO | settings.RouterDQN) -> dict[str, Any]:
    """Arguments of SB3's `PPO` or `DQN`: the deployable encoder, then a linear layer of scores."""
    encoder = [field.name for field in fields(settings.RouterEncoder)]
    policy: dict[str, Any] = {
        "features_extractor_class": RouterExtractor,
        "features_extractor_kwargs": {name: getattr(made, name) for name in encoder},
        "optimizer_class": AdamW,
        "optimizer_kwargs": {"weight_decay": made.weight_decay},
    }
    arguments = made.for_sb3("weight_decay", *encoder) | {"policy_kwargs": policy}
    if isinstance(made, settings.RouterPPO):
        policy["net_arch"] = {"pi": [], "vf": [made.width]}
        return arguments
    policy["net_arch"] = []
    return arguments | {"train_freq": 1}


@torch.no_grad()
def deployable_network(agent: PPO | DQN) -> RouterNetwork:
    """Copies the acting part of an SB3 agent into a `RouterNetwork`.

    PPO's scores are the logits of its policy, DQN's are its values of the arms.
    """
    extractor, scores = _acting_part(agent)
    mix, hidden = extractor.encoder.mix, extractor.encoder.hidden
    with torch.random.fork_rng(devices=[]):  # looking at an agent must not change how it learns
        network = RouterNetwork(
            signals=mix.in_features - hidden.out_features,
            hidden=hidden.in_features,
            arms=scores.out_features,
            width=mix.out_features,
            neck=hidden.out_features,
        )
    network.encoder.load_state_dict(extractor.encoder.state_dict())
    network.scores.load_state_dict(scores.state_dict())
    return network


def _acting_part(agent: PPO | DQN) -> tuple[RouterExtractor, nn.Linear]:
    policy = agent.policy
    if isinstance(policy, DQNPolicy):
        extractor, scores = policy.q_net.features_extractor, policy.q_net.q_net[0]
    else:
        assert isinstance(policy, ActorCriticPolicy)
        extractor, scores = policy.features_extractor, policy.action_net
    assert isinstance(extractor, RouterExtractor) and isinstance(scores, nn.Linear)
    return extractor, scores


def _width(space: gym.Space[Any]) -> int:
    assert space.shape is not None, "signals and hidden are boxes"
    return int(space.shape[0])
