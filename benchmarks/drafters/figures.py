"""Figures and tables of `benchmarks.drafters.objectives`, from what was measured text by text.

Acceptance length is total tokens over total rounds, the target's own token included. Two of them
are compared by their ratio over the same prompts, with a paired bootstrap over prompts; of several
seeds of an objective, the one of median acceptance stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.drafters.held_out_texts import HeldOutText
from benchmarks.drafters.measure import Condition
from benchmarks.report import Json, Table, each, percent
from benchmarks.results import Result
from draftgym.decoding.arms import Asking, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.rollouts.replay.pricing import check_costs
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.statistics import Work, speed_ratio


@dataclass(frozen=True)
class Run:
    """One checkpoint with what was measured.

    Attributes:
        drafter: Name of its kind, as in arms.
        lag: Positions that it leaves to its next draft.
        measured: `Measured` as JSON, by condition.
    """

    drafter: str
    lag: int
    measured: Mapping[str, Mapping[str, Any]]

    def works(self, condition: Condition, texts: Sequence[HeldOutText]) -> list[Work]:
        """Tokens and rounds of each text: a round is the unit of time here."""
        rounds = self.measured[str(condition)]["rounds"]
        return [Work(one.decoded, count) for one, count in zip(texts, rounds, strict=True)]


def summarise(
    texts: Sequence[HeldOutText],
    runs: Mapping[str, Sequence[Run]],
    conditions: Sequence[Condition],
    references: Sequence[str],
    model: CostModel | None = None,
) -> dict[str, dict[str, Result]]:
    """Result by objective and condition.

    Args:
        texts: All texts, at all temperatures, in the order in which they were measured.
        runs: Every objective's seeds.
        conditions: What to report.
        references: Objectives that all are compared with (the baseline, the control).
        model: Predicts seconds at temperature 0.

    Raises:
        DraftgymError: The model does not know a drafter.
    """
    if model is not None:
        check_costs(model, sorted({run.drafter for seeds in runs.values() for run in seeds}))
    figures: dict[str, dict[str, Result]] = {name: {} for name in runs}
    for condition in conditions:
        mine = [one for one in texts if one.temperature == condition.temperature]
        works = {
            name: [run.works(condition, mine) for run in seeds] for name, seeds in runs.items()
        }
        medians = {name: _median([acceptance(one) for one in of]) for name, of in works.items()}
        against = {name: works[name][medians[name]] for name in references}
        for name, seeds in runs.items():
            median = medians[name]
            found = _figures(mine, works[name], median, against)
            positions = seeds[median].measured[str(condition)]["at_positions"]
            found["over_positions"] = sum(positions) / sum(one.decoded for one in mine)
            if model is not None and not condition.temperature:
                found["predicted_speedup"] = predicted_speedup(
                    model, mine, seeds[median], condition
                )
            figures[name][str(condition)] = found
    return figures


def acceptance(works: Sequence[Work]) -> float:
    """Tokens per round, all texts together."""
    return sum(work.tokens for work in works) / sum(work.seconds for work in works)


def predicted_speedup(
    model: CostModel, texts: Sequence[HeldOutText], run: Run, condition: Condition
) -> float:
    """Speed over plain decoding of the same texts by a cost model.

    Args:
        model: What rounds cost.
        texts: Texts at temperature 0.
        run: Who drafted, with the rounds that were played.
        condition: In which shape.
    """
    arm = parse_arm(f"{run.drafter}:{condition.shape}")
    mine = plain = 0.0
    for one, walk in zip(texts, run.measured[str(condition)]["walks"], strict=True):
        context, worked = one.text.prompt_length, run.lag - 1
        plain += sum(model.step_seconds(context + index) for index in range(one.decoded))
        for committed, drafted, depth in zip(*walk, strict=True):
            missed = context - worked if depth else 0  # without room, nobody is asked
            mine += model.round_seconds([Asking(arm, drafted, depth, missed)], drafted, context)
            worked = context if depth else worked
            context += committed
    return plain / mine


def groups_of(texts: Sequence[HeldOutText]) -> dict[str, list[int]]:
    """Indices of the texts by category, and of all of them."""
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(texts):
        groups.setdefault(one.category, []).append(index)
    return {**groups, ALL: list(range(len(texts)))}


def _figures(
    texts: Sequence[HeldOutText],
    seeds: Sequence[Sequence[Work]],
    median: int,
    against: Mapping[str, Sequence[Work]],
) -> Result:
    groups: dict[str, Result] = {}
    for group, rows in groups_of(texts).items():
        mine = [seeds[median][row] for row in rows]
        groups[group] = {
            "acceptance_length": acceptance(mine),
            "over": {
                name: _interval(mine, [theirs[row] for row in rows])
                for name, theirs in against.items()
            },
        }
    return {
        "groups": groups,
        "median_seed": median,
        "acceptance_by_seed": [acceptance(seed) for seed in seeds],
    }


def _interval(mine: Sequence[Work], theirs: Sequence[Work]) -> list[float]:
    """Ratio of acceptance lengths with its interval, less one."""
    ratio = speed_ratio(mine, theirs)
    return [ratio.value - 1, ratio.low - 1, ratio.high - 1]


def _median(lengths: Sequence[float]) -> int:
    return int(np.argsort(lengths)[(len(lengths) - 1) // 2])


def tables(result: Json) -> list[Table]:
    """Acceptance lengths, gains over the references, categories, positions and predicted speed."""
    objectives, shown = result["figures"], result["shown"]
    conditions, references = shown["conditions"], shown["references"]
    made = [
        Table.named(
            "acceptance length: tokens a round commits, the target's own included (lowest to "
            "highest seed); under rejection, tokens over expected rounds",
            "objective",
            objectives,
            each(conditions, lambda one, condition: _length(one[condition])),
        )
    ]
    for reference in references:
        made.append(
            Table.named(
                f"acceptance length over {reference}, in % (95 % over prompts, seed of median "
                "length)",
                "objective",
                {name: one for name, one in objectives.items() if name != reference},
                each(conditions, partial(_gain, reference)),
            )
        )
    made += [_by_category(objectives, one, references[0]) for one in shown["by_category"]]
    positions = each(conditions, lambda one, condition: f"{one[condition]['over_positions']:.3f}")
    title = "tokens a round would commit, mean over all positions of the texts (not over rounds)"
    made.append(Table.named(title, "objective", objectives, positions))
    first = next(iter(objectives.values()))
    priced = [one for one in conditions if "predicted_speedup" in first[one]]
    speeds = each(priced, lambda one, condition: f"{one[condition]['predicted_speedup']:.3f}")
    title = "speed over plain decoding by the cost model"
    made += [Table.named(title, "objective", objectives, speeds)] if priced else []
    return [table for table in made if table.rows]


def _by_category(objectives: Json, condition: str, baseline: str) -> Table:
    def tell(one: Json, group: str) -> str:
        found = one[condition]["groups"][group]
        return f"{found['acceptance_length']:.2f} ({percent(found['over'][baseline][0])})"

    groups = next(iter(objectives.values()))[condition]["groups"]
    title = f"{condition}, by category: acceptance length (over {baseline} in %)"
    return Table.named(title, "objective", objectives, each(groups, tell))


def _length(found: Json) -> str:
    seeds = found["acceptance_by_seed"]
    length = f"{found['groups'][ALL]['acceptance_length']:.3f}"
    return length if len(seeds) == 1 else f"{length} ({min(seeds):.3f} to {max(seeds):.3f})"


def _gain(reference: str, one: Json, condition: str) -> str:
    value, low, high = map(percent, one[condition]["groups"][ALL]["over"][reference])
    return f"{value} ({low} to {high})"  # spaces: narrow tables fold here
