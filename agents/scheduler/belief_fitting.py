"""Beliefs by maximum likelihood: what reinforcement learning of schedulers begins with.

A round in which n tokens of a draft were accepted is evidence of n acceptances and, if more were
asked for, of one rejection (`draftgym.policies.multispin.beliefs`). A trace tells the n of the
longest draft at every position, so the likelihood of a network that says an acceptance `a` for
each user,

    a^n (1 - a)^[n < longest],

is known without any draft being chosen, and its gradient has no noise of exploration.

A head that also tilts channel reports (`draftgym.policies.multispin.channels`) is fitted to the
decibels by which the channel of a round was better than its report, by least squares: nothing where
channels are known at once, and back to the mean where fading has forgotten the report.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from draftgym.agents.common.settings import BeliefFit
from draftgym.envs.cell.cell import Cell
from draftgym.envs.scheduler.actions import BeliefActions
from draftgym.envs.scheduler.observation import USER_FEATURES, observe_cell
from draftgym.policies.multispin.channels import MOST_TILT
from draftgym.policies.schedulers.learned import box_parameters
from draftgym.policies.schedulers.network import SchedulerNetwork

DECIDING = USER_FEATURES.index("deciding")
LEAST_SNR = 1e-9
"""A channel that is no better is silent; keeps decibels finite."""


class Evidence(NamedTuple):
    """Rounds of cells: what was seen, and what the longest drafts would have had accepted.

    Attributes:
        users, cell: Observations `[n, K, F]` and `[n, C]`.
        accepted, rejected: Tokens `[n, K]`, one rejected at most; nothing of who did not decide.
        better: By how much channels were better than reported, as tilts `[n, K]`; nothing of who
            did not decide.
    """

    users: Tensor
    cell: Tensor
    accepted: Tensor
    rejected: Tensor
    better: Tensor


def fit_beliefs(
    network: SchedulerNetwork, cell: Cell, settings: BeliefFit, seed: int
) -> list[float]:
    """Fits a network whose head sets beliefs, or tilts as well; returns each epoch's mean loss.

    Args:
        network: The network, changed in place.
        cell: Cells over training texts; they are reset.
        settings: How.
        seed: Of users, channels and the order of examples.
    """
    if not settings.rounds:
        return []
    evidence = _play(cell, settings.rounds, seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    shuffle, losses = torch.Generator().manual_seed(seed), []
    count = len(evidence.users)
    steps = settings.epochs * -(-count // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    network.train()
    network.pool.dropout.p = settings.dropout
    for _ in tqdm(range(settings.epochs), desc="fitting beliefs", unit="epoch"):
        total = 0.0
        for batch in torch.randperm(count, generator=shuffle).split(settings.batch_size):
            loss = fitting_loss(network, Evidence(*(part[batch] for part in evidence)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch) / count
        losses.append(total)
    network.pool.dropout.p = 0.0  # reinforcement learning compares its probabilities exactly
    return losses


def fitting_loss(network: SchedulerNetwork, evidence: Evidence) -> Tensor:
    """Mean over users of `-n ln a - r ln(1 - a)`, and of tilts' squared error if there are any."""
    means, _ = box_parameters(network(evidence.users, evidence.cell))
    beliefs, tilts = means.tensor_split([evidence.accepted.shape[1]], dim=1)
    odds = 2 * beliefs  # a = (tanh(m) + 1) / 2 = sigmoid(2 m)
    each = evidence.accepted * F.softplus(-odds) + evidence.rejected * F.softplus(odds)
    if not tilts.shape[1]:
        return each.mean()
    said = torch.tanh(tilts) * evidence.users[..., DECIDING]
    return each.mean() + F.mse_loss(said, evidence.better)


def _play(cell: Cell, rounds: int, seed: int) -> Evidence:
    """Rounds with drafts of the usual beliefs, and at every second one of random lengths."""
    cell.reset([np_random(seed + index)[0] for index in range(cell.count)])
    rng, actions = np.random.default_rng(seed), BeliefActions(cell.shape[1], cell.longest)
    seen: list[tuple[NDArray[np.float32], ...]] = []
    for turn in range(rounds):
        observation = observe_cell(cell)
        seen.append((observation["users"], observation["cell"], *_outcomes(cell)))
        plan = cell.best_plan(rng.integers(cell.longest + 1, size=cell.shape))
        if turn % 2:
            users = cell.users
            usual = users.posterior.estimate(users.means[users.task])
            plan = actions.plan(cell, 2 * usual - 1)
        cell.step(plan)
    columns = zip(*seen, strict=True)
    return Evidence(*(torch.from_numpy(np.concatenate(column)) for column in columns))


def _outcomes(cell: Cell) -> tuple[NDArray[np.float32], ...]:
    """Accepted tokens of the longest drafts, whether one was not, better channels, `[n, K]` each.

    A token that a drafter does not find counts as rejected: nothing is to be expected of it.
    """
    accepted = cell.acceptable
    rejected = (accepted < cell.longest) & cell.deciding
    ratio = np.maximum(cell.channel.snr, LEAST_SNR) / np.maximum(cell.reported, LEAST_SNR)
    better = np.clip(10 * np.log10(ratio) / MOST_TILT, -1.0, 1.0)
    told = np.where(cell.deciding, accepted, 0), rejected, np.where(cell.deciding, better, 0)
    return tuple(one.astype(np.float32) for one in told)
