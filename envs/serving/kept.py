"""What a table keeps of the gain of the policy that it stands for, on batches of each size.

Both write the same texts, each once, on the same servers; intervals are paired bootstraps over
texts. The gain is what is written per second beyond plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import PLAIN, Arm
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.distil import BatchPolicy
from draftgym.envs.serving.identical import play_identical
from draftgym.envs.serving.play import RulePlayer
from draftgym.policies.serving.engines.table import LengthTable
from draftgym.policies.serving.rule import FixedRule, ServingRule
from draftgym.rollouts.report.statistics import Interval, bootstrap, speed_ratio
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True)
class Kept:
    """What a table keeps at a size of the batch.

    Attributes:
        size: Requests in the batch.
        length: Tokens that the table drafts.
        policy: Speed of the policy over plain decoding.
        table: Speed of the table over plain decoding.
        against: Speed of the table over the policy.
        share: The table's gain as a share of the policy's.
    """

    size: int
    length: int
    policy: Interval
    table: Interval
    against: Interval
    share: Interval


def rule_policy(rule: ServingRule) -> BatchPolicy:
    """A rule as who chooses for batches."""
    return BatchPolicy(rule.name, rule.arms, lambda load: RulePlayer(rule, load), rule=rule)


def measure_kept(
    policy: BatchPolicy,
    table: LengthTable,
    traces: TraceSet,
    settings: ServerSettings,
    sizes: Sequence[int],
) -> list[Kept]:
    """Plays both at every size.

    Args:
        policy: Who chooses.
        table: What stands for it.
        traces: Texts that neither was made with.
        settings: What the servers are made of.
        sizes: Sizes of the batch, none above the table's largest.

    Raises:
        DraftgymError: Arms that were not traced, or sizes that were not measured.
    """
    rule = rule_policy(table.rule())
    plain = rule_policy(FixedRule(Arm(PLAIN, 0)))
    laid_out = rule.texts(traces, settings)  # an arm of its ladder is plain
    everybody = [(policy, policy.texts(traces, settings)), (rule, laid_out), (plain, laid_out)]
    found = []
    for size in sizes:
        mine, its, slow = (
            play_identical(texts, settings, size, one.make) for one, texts in everybody
        )
        sums = [
            [number for work in three for number in (work.tokens, work.seconds)]
            for three in zip(mine, its, slow, strict=True)
        ]
        ratios = speed_ratio(mine, slow), speed_ratio(its, slow), speed_ratio(its, mine)
        length = next(length for first, last, length in table.ranges if first <= size <= last)
        found.append(Kept(size, length, *ratios, bootstrap(sums, _share)))
    return found


def _share(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The table's gain by the policy's; columns: tokens and seconds of policy, table and plain."""
    policy, table, plain = (sums[:, at] / sums[:, at + 1] for at in (0, 2, 4))
    return np.asarray((table - plain) / (policy - plain))
