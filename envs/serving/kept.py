"""What an export keeps of the gain of the policy that it stands for.

On batches of each size both write the same texts, each once; intervals are paired bootstraps over
texts. On mixed batches, which are full as long as requests wait, servers have texts of their own,
and intervals are over servers. The gain is what is written per second beyond plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import PLAIN, Arm
from draftgym.envs.load.arrivals import AtOnce
from draftgym.envs.load.load import Load
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.distil import BatchPolicy
from draftgym.envs.serving.identical import TextsInTurn, play_identical
from draftgym.envs.serving.play import RulePlayer
from draftgym.policies.serving.rule import FixedRule, ServingRule
from draftgym.rollouts.report.statistics import Interval, Work, bootstrap, speed_ratio
from draftgym.rollouts.traces.trace import TraceSet

EACH = 3
"""Requests of mixed batches for each place."""


@dataclass(frozen=True)
class Kept:
    """What an export keeps at a size of the batch.

    Attributes:
        size: Requests in the batch, identical ones; None for mixed ones.
        policy: Speed of the policy over plain decoding.
        export: Speed of what the engine does over plain decoding.
        against: Speed of that over the policy.
        share: Its gain as a share of the policy's; None where that has no gain to speak of.
    """

    size: int | None
    policy: Interval
    export: Interval
    against: Interval
    share: Interval | None


def rule_policy(rule: ServingRule) -> BatchPolicy:
    """A rule as who chooses for batches."""
    return BatchPolicy(rule.name, rule.arms, lambda load: RulePlayer(rule, load), rule=rule)


def measure_kept(
    policy: BatchPolicy,
    export: BatchPolicy,
    traces: TraceSet,
    settings: ServerSettings,
    sizes: Sequence[int],
) -> list[Kept]:
    """Plays both at every size, and on mixed batches up to the largest.

    Args:
        policy: Who chooses.
        export: What an engine does instead.
        traces: Texts that neither was made with.
        settings: What the servers are made of.
        sizes: Sizes of the batch.

    Raises:
        DraftgymError: Arms that were not traced, or sizes that were not measured.
    """
    everybody = [policy, export, rule_policy(FixedRule(Arm(PLAIN, 0)))]
    if export is policy:
        del everybody[0]
    laid_out = [(one, one.texts(traces, settings)) for one in everybody]
    found = []
    for size in sizes:
        works = [play_identical(texts, settings, size, one.make) for one, texts in laid_out]
        found.append(_kept(size, works))
    mixed = [_play_mixed(one, texts, settings, sizes[-1]) for one, texts in laid_out]
    return [*found, _kept(None, mixed)]


def _play_mixed(
    policy: BatchPolicy, texts: TextsInTurn, settings: ServerSettings, places: int
) -> list[Work]:
    """Tokens and seconds of each server while requests wait, prompts included."""
    requests = EACH * places
    settings = replace(
        settings, places=places, requests=requests, copies=1, arrivals=AtOnce(), mixture=None
    )
    count = texts.servers
    load = Load(texts, settings, settings.make_costs(texts.drafters), count)
    player = policy.make(load)
    load.reset([np.random.default_rng(seed) for seed in range(count)])
    tokens, seconds = np.zeros((2, count))
    while (waiting := load.waiting > 0).any():
        played = load.step(player.choose(load))
        player.learn(played)
        tokens += np.where(waiting, played.committed.sum(-1), 0)
        seconds += np.where(waiting, played.seconds, 0.0)
    return [Work(int(a), float(b)) for a, b in zip(tokens, seconds, strict=True)]


def _kept(size: int | None, works: Sequence[Sequence[Work]]) -> Kept:
    """Of the policy, the export and plain decoding; of the first two together, if they are one."""
    mine, its, plain = works if len(works) == 3 else (works[0], *works)
    sums = [
        [number for work in three for number in (work.tokens, work.seconds)]
        for three in zip(mine, its, plain, strict=True)
    ]
    gain = speed_ratio(mine, plain)
    share = bootstrap(sums, _share) if gain.low > 1 else None
    return Kept(size, gain, speed_ratio(its, plain), speed_ratio(its, mine), share)


def _share(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The export's gain by the policy's; columns: tokens, seconds of policy, export and plain."""
    policy, export, plain = (sums[:, at] / sums[:, at + 1] for at in (0, 2, 4))
    return np.asarray((export - plain) / (policy - plain))
