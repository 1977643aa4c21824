"""Rounds of Multi-SPIN's own model (arXiv 2606.04581, section VI-A), to play schedulers on.

A draw is a cell: a task and a device for each user, and its mean gain. A round of it has fresh
Rayleigh fading. A drafted token is accepted with the mean probability of its user's task (Table I)
whatever came before it, and the scheduler knows that probability and this round's channels. Tokens
are expectations given the round, not samples.

All schedulers, bandwidths, payloads and numbers of users see the same draws: fewer users are the
first of more. d = draws, t = rounds of each, k = users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.settings import EdgeSetting, edge_setting
from draftgym.envs.radio.channel import FadingChannel
from draftgym.envs.radio.payload import Payload
from draftgym.envs.radio.radio import known_efficiency
from draftgym.policies.multispin.problem import Lengths, RoundProblem
from draftgym.policies.multispin.uplink import Floats
from draftgym.policies.schedulers.rules import Rule

ACCEPTANCE = {
    "multispin-llama2": {"MBPP+": 0.8582, "GSM8K": 0.7390, "MT-Bench": 0.7393, "SQuAD": 0.7126},
    "multispin-qwen3.5": {"MBPP+": 0.8100, "GSM8K": 0.9340, "MT-Bench": 0.9318, "SQuAD": 0.9650},
}
"""Mean acceptance of each task: Table I."""


@dataclass(frozen=True)
class Condition:
    """What a figure varies.

    Attributes:
        payload: What devices upload.
        hertz: The band that users share.
        users: How many there are.
        min_length: Shortest draft: 1 in the paper, 0 lets a user skip drafting.
        coupled_bound: Whether acceptance is taken at the least that the coupled rule guarantees.
    """

    payload: Payload
    hertz: float = 10e6
    users: int = 20
    min_length: int = 1
    coupled_bound: bool = False


@dataclass(frozen=True)
class Rounds:
    """Rounds of many cells, with all users that any condition may want.

    Attributes:
        setting: The cell's radio, devices, server and payload.
        acceptance: Chance of a drafted token `[d, k]`.
        draft_seconds: Seconds per drafted token `[d, k]`.
        snr: Signal-to-noise ratios `[d, t, k]`.
    """

    setting: EdgeSetting
    acceptance: Floats
    draft_seconds: Floats
    snr: Floats

    @classmethod
    def draw(cls, name: str, draws: int, rounds: int, users: int, seed: int) -> Self:
        """Draws cells and their rounds.

        Raises:
            DraftgymError: A setting that Table I says nothing about.
        """
        setting = edge_setting(name)
        if name not in ACCEPTANCE:
            raise DraftgymError(
                f"Table I has no acceptance for {name}", f"use {' or '.join(ACCEPTANCE)}"
            )
        rng = np.random.default_rng(seed)
        acceptance = rng.choice(list(ACCEPTANCE[name].values()), (draws, users))
        seconds = setting.device.draw(rng, (draws, users))
        channel = FadingChannel(setting.radio, (draws, users))
        channel.reset(rng)
        snr = [channel.snr]
        while len(snr) < rounds:
            channel.advance(rng, 0.0)  # the paper's rounds are independent, however short
            snr.append(channel.snr)
        return cls(setting, acceptance, seconds, np.stack(snr, axis=1))

    def problem(
        self, draw: int, condition: Condition, which: int | slice = slice(None)
    ) -> RoundProblem:
        """Rounds of one draw as a scheduler sees them: all `[t, k]`, or one `[k]`."""
        users = slice(condition.users)
        acceptance = self.acceptance[draw, users]
        if condition.coupled_bound:
            # Two samples with shared Gumbel noise agree at least with the chance (1 - D) / (1 + D),
            # D being the total variation distance; rejection sampling accepts with 1 - D. The bound
            # is convex in D, so it holds for the means of a task as well.
            acceptance = acceptance / (2 - acceptance)
        return RoundProblem(
            draft_seconds=self.draft_seconds[draw, users],
            payload_bits=np.asarray(condition.payload.bits_per_token, float),
            efficiency=known_efficiency(
                self.setting.radio.band, self.snr[draw, which][..., users], 1.0
            ),
            acceptance=acceptance,
            bandwidth=np.asarray(condition.hertz),
            verification=self.setting.server.affine(),
            min_length=condition.min_length,
            max_length=self.setting.longest_draft,
        )


@dataclass(frozen=True)
class Played:
    """What a rule made of rounds.

    Attributes:
        lengths: Drafted tokens `[d, t, k]`.
        shares: Shares of the band `[d, t, k]`.
        tokens: Expected tokens that a round commits `[d, t]`.
        seconds: Expected seconds of a round `[d, t]`.
        bits: Expected bits that all users upload in a round `[d, t]`.
    """

    lengths: Lengths
    shares: Floats
    tokens: Floats
    seconds: Floats
    bits: Floats

    @property
    def goodput(self) -> Floats:
        """Mean over each draw's rounds of tokens a second in a round `[d]`: the paper's figure."""
        return np.asarray((self.tokens / self.seconds).mean(axis=1))


def play(rounds: Rounds, rule: Rule, condition: Condition, alone: bool = False) -> Played:
    """Plays a rule on all rounds under a condition, one draw at a time (memory).

    Args:
        rounds: The rounds.
        rule: What plans them. It does not reckon with corrections of rejected tokens.
        condition: Band, users and payload.
        alone: Whether every user has a cell of its own: the paper's P2P-SPIN. Then each round
            becomes k rounds of one user.
    """
    parts: list[tuple[NDArray[np.generic], ...]] = []
    for draw in range(len(rounds.snr)):
        problem = rounds.problem(draw, condition)
        problem = _one_by_one(problem) if alone else problem
        plan = rule(problem)
        seconds, bits = correction(problem, plan.lengths, condition.payload)
        drafted = condition.payload.draft_bits(plan.lengths).sum(axis=-1)
        parts.append(
            (
                plan.lengths,
                plan.shares,
                problem.tokens(plan.lengths),
                problem.seconds(plan) + seconds,
                drafted + bits,
            )
        )
    return Played(*(np.stack(part) for part in zip(*parts, strict=True)))


def correction(problem: RoundProblem, lengths: Lengths, payload: Payload) -> tuple[Floats, Floats]:
    """Expected seconds and bits of the distributions that follow a rejected token `[t]`.

    After verification, users with a rejected token upload one distribution each, and divide the
    band equally among them (arXiv 2608.29618): that takes `m max_k n_k` seconds, m being how many
    they are and n_k what user k's upload takes on the whole band. Sorted by n_k from the longest,
    user k is the maximum if its draft was rejected and none before it was.
    """
    rejected = 1 - problem.acceptance**lengths
    bits = payload.correction_bits * rejected.sum(axis=-1)
    alone = payload.correction_bits / (problem.efficiency * problem.bandwidth[..., None])
    order = np.argsort(-alone, axis=-1)
    alone, chance = (np.take_along_axis(x, order, axis=-1) for x in (alone, rejected))
    none_yet = np.cumprod(1 - chance, axis=-1)[..., :-1]
    none_before = np.concatenate([np.ones_like(chance[..., :1]), none_yet], axis=-1)
    others_after = chance[..., ::-1].cumsum(axis=-1)[..., ::-1] - chance
    return (alone * chance * none_before * (1 + others_after)).sum(axis=-1), bits


def _one_by_one(problem: RoundProblem) -> RoundProblem:
    """A round of its own for every user: `[t, k]` becomes `[t k, 1]`."""
    users = problem.draft_seconds.shape[-1]
    return RoundProblem(
        draft_seconds=problem.draft_seconds.reshape(-1, 1),
        payload_bits=problem.payload_bits.reshape(-1, 1),
        efficiency=problem.efficiency.reshape(-1, 1),
        acceptance=problem.acceptance.reshape(-1, 1),
        bandwidth=np.repeat(problem.bandwidth, users),
        verification=problem.verification,
        min_length=problem.min_length,
        max_length=problem.max_length,
    )
