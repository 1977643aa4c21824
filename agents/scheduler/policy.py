"""SB3's view of scheduler networks: what acts is the deployable network itself.

PPO scores draft lengths (`MultiDiscrete`) or sets beliefs and tilts in a box, SAC chooses in a box
(`draftgym.policies.schedulers.learned`).
Who does not decide has no influence: its log-probability is 0, and critics do not see its action.
Critics pool users as the acting network does, so that nothing anywhere asks for their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import (
    BaseModel,
    BasePolicy,
    ContinuousCritic,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

from draftgym.policies.schedulers.learned import COMPONENTS, LENGTHS, SchedulerHead, box_parameters
from draftgym.policies.schedulers.network import SchedulerNetwork, UserPool

Observations = dict[str, Tensor]
NEVER = -1e9
"""Score of a length that cannot be chosen."""


class SetValue(nn.Module):
    """A number for a whole cell: layers of every user pooled, then layers of the pool.

    Args:
        head: Names what is read.
        width: Of the layers.
        actions: Numbers of each user's action that are read beside the observation.
    """

    def __init__(self, head: SchedulerHead, width: int, actions: int = 0) -> None:
        super().__init__()
        numbers = len(head.user_features) + actions
        active = head.user_features.index("active")
        self.pool = UserPool(numbers, len(head.cell_features), width, active)
        self.mixed = nn.Linear(self.pool.size, width)
        self.value = nn.Linear(width, 1)

    def forward(self, users: Tensor, cell: Tensor) -> Tensor:
        """Values `[n, 1]`; see `UserPool`."""
        out: Tensor = self.value(torch.relu(self.mixed(self.pool(users, cell)[1])))
        return out


class Joined(BaseFeaturesExtractor):
    """Hands an observation on as one row of numbers, which SB3 wants between its modules."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        super().__init__(observation_space, spaces.flatdim(observation_space))

    def forward(self, observations: Observations) -> Tensor:
        """All numbers of users, then those of the cell `[n, K * F + C]`."""
        return torch.cat([observations["users"].flatten(1), observations["cell"]], dim=1)


class ActorAndValue(nn.Module):
    """Scores of all draft lengths, and the value of the cell, from a `Joined` observation."""

    def __init__(self, head: SchedulerHead, width: int, users: int) -> None:
        super().__init__()
        self.actor = head.network(width)
        self.critic = SetValue(head, width)
        self.head, self.users = head, users
        self.latent_dim_pi, self.latent_dim_vf = users * head.outputs, 1  # SB3 asks

    def forward(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[n, K * lengths]` and values `[n, 1]`."""
        return self.forward_actor(joined), self.forward_critic(joined)

    def forward_actor(self, joined: Tensor) -> Tensor:
        """Scores; where nobody decides, 0 alone can be chosen. Of a box: means, then spreads."""
        users, cell = self._apart(joined)
        scores = self.actor(users, cell)
        deciding = users[..., self.head.deciding] > 0
        if self.head.kind != LENGTHS:
            # Who does not decide draws from one distribution for ever, which no gradient moves.
            means, spreads = box_parameters(scores)
            read = deciding.repeat(1, COMPONENTS[self.head.kind])
            return torch.cat([torch.tanh(means) * read, spreads * read], dim=1)
        longer = torch.arange(self.head.outputs) > 0
        masked: Tensor = scores.masked_fill(~deciding[..., None] & longer, NEVER)
        return masked.flatten(1)

    def forward_critic(self, joined: Tensor) -> Tensor:
        """Values."""
        out: Tensor = self.critic(*self._apart(joined))
        return out

    def _apart(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        numbers = self.users * len(self.head.user_features)
        users = joined[:, :numbers].unflatten(1, (self.users, -1))
        return users, joined[:, numbers:]


class SchedulerActorCritic(MultiInputActorCriticPolicy):
    """PPO's policy.

    Args:
        observation_space: Of the scheduler environment.
        action_space: Draft lengths.
        lr_schedule: See SB3.
        head: What the network says.
        width: Of its layers.
        spread: Standard deviation of a user's first number in a box at first.
        tilt_spread: That of its second one.
        kwargs: See SB3.
    """

    mlp_extractor: ActorAndValue  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.MultiDiscrete | spaces.Box,
        lr_schedule: Callable[[float], float],
        head: SchedulerHead,
        width: int,
        spread: float = 0.1,
        tilt_spread: float = 0.015,
        **kwargs: Any,
    ) -> None:
        self.head, self.width = head, width
        self.spreads = spread, tilt_spread
        kwargs |= {"features_extractor_class": Joined, "ortho_init": False}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        users = _places(self.observation_space)
        self.mlp_extractor = ActorAndValue(self.head, self.width, users)
        # Both are whole networks already.
        self.action_net: nn.Module = nn.Identity()
        self.value_net: nn.Module = nn.Identity()  # type: ignore[assignment]
        with torch.no_grad():
            self.mlp_extractor.actor.outputs.weight.mul_(0.01)  # every length is tried at first
            self.mlp_extractor.actor.outputs.bias.zero_()
            if self.head.kind != LENGTHS:
                components = COMPONENTS[self.head.kind]
                spreads = torch.tensor(self.spreads[:components]).log()
                self.mlp_extractor.actor.outputs.bias[components:] = spreads
        rate = lr_schedule(1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        if self.head.kind == LENGTHS:
            return super()._get_action_dist_from_latent(latent_pi)
        means, spreads = latent_pi.chunk(2, dim=1)
        assert isinstance(self.action_dist, DiagGaussianDistribution)
        return self.action_dist.proba_distribution(means, spreads)


class SetActor(BasePolicy):
    """SAC's actor: a squashed normal distribution per number of the action."""

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        head: SchedulerHead,
        width: int,
    ) -> None:
        super().__init__(observation_space, action_space, squash_output=True)
        self.head = head
        self.network = head.network(width)

    def forward(self, obs: Observations, deterministic: bool = False) -> Tensor:
        """Actions `[n, components * K]`."""
        mean, spread = box_parameters(self.network(obs["users"], obs["cell"]))
        noise = 0.0 if deterministic else spread.exp() * torch.randn_like(mean)
        return torch.tanh(mean + noise) * self._read(obs)

    def action_log_prob(self, obs: Observations) -> tuple[Tensor, Tensor]:
        """Random actions, and the logarithm of their density `[n]` over those who decide."""
        mean, spread = box_parameters(self.network(obs["users"], obs["cell"]))
        normal = torch.distributions.Normal(mean, spread.exp())
        before = normal.rsample()
        actions = torch.tanh(before)
        each = normal.log_prob(before) - torch.log(1 - actions**2 + 1e-6)
        read = self._read(obs)
        return actions * read, (each * read).sum(1)

    def _read(self, obs: Observations) -> Tensor:
        """1 for numbers that are read, 0 for those of who does not decide `[n, components * K]`."""
        deciding = obs["users"][..., self.head.deciding]
        return deciding.repeat(1, COMPONENTS[self.head.kind])

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.forward(observation, deterministic)


class SetCritic(BaseModel):
    """SAC's pair of critics."""

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        head: SchedulerHead,
        width: int,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.head = head
        components = spaces.flatdim(action_space) // _places(observation_space)
        self.values = nn.ModuleList(SetValue(head, width, components) for _ in range(2))

    def forward(self, obs: Observations, actions: Tensor) -> tuple[Tensor, ...]:
        """Values `[n, 1]` of each critic; actions that are not read count as 0."""
        users = obs["users"]
        each = actions.unflatten(1, (-1, users.shape[1])).transpose(1, 2)
        read = users[..., self.head.deciding, None]
        joined = torch.cat([users, each * read], dim=-1)
        return tuple(value(joined, obs["cell"]) for value in self.values)


class SchedulerSAC(SACPolicy):
    """SAC's policy; see `SchedulerActorCritic` for the arguments."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Callable[[float], float],
        head: SchedulerHead,
        width: int,
        **kwargs: Any,
    ) -> None:
        self.head, self.width = head, width
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """The acting network; it needs no features extractor."""
        spaces_ = self.observation_space, self.action_space
        return SetActor(*spaces_, self.head, self.width).to(self.device)  # type: ignore[return-value]

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        """A pair of critics."""
        spaces_ = self.observation_space, self.action_space
        return SetCritic(*spaces_, self.head, self.width).to(self.device)  # type: ignore[return-value]


def acting_network(policy: BasePolicy) -> SchedulerNetwork:
    """The network that acts, not a copy."""
    if isinstance(policy, SchedulerActorCritic):
        return policy.mlp_extractor.actor
    assert isinstance(policy, SchedulerSAC)
    actor: Any = policy.actor
    network: SchedulerNetwork = actor.network
    return network


def _places(observation_space: gym.Space[Any]) -> int:
    assert isinstance(observation_space, spaces.Dict)
    shape = observation_space["users"].shape
    assert shape is not None
    return int(shape[0])
