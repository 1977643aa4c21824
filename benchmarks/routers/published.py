"""Published traces of a large target: arms, rules, routers and an oracle, by data set and batch.

    $ draftgym import-traces specdecode-bench FOLDER --out runs/published
    $ python -m benchmarks.routers.published --traces runs/published/train \
        --heldout runs/published/heldout --json runs/published.json

The best single arm and the best cascade of lookup and the published drafter are chosen on training
texts, by the total tokens over total seconds of one data set, or of all of them together, and
reported on others. Without `--heldout` they are reported on the texts that they were chosen on: an
upper bound, as first looks are.
Costs are those of a round that so many requests share whose drafts and texts are equally long.
The oracle takes the best arm of each round by tokens - price * seconds, among the single arms and
plain. Intervals are paired bootstraps over texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.report import Cell, Json, Table, ends, percent
from benchmarks.results import Result, check, finish
from benchmarks.routers.joint import FAMILIES, Family, Tuner
from benchmarks.routers.routing import speed
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.costs.published import named_cost_model
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.policies.base import Policy
from draftgym.policies.routers.learned import load_learned_policy
from draftgym.rollouts.replay.oracle import greedy_price, walk_greedy, walk_single
from draftgym.rollouts.replay.play import play_policy
from draftgym.rollouts.replay.pricing import PLAIN_ARM, price_traces
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.statistics import Work, speed_ratio
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, kw_only=True)
class PublishedArgs:
    """Compare arms, rules and routers on published traces.

    Attributes:
        traces: Folders of traces on which arms and rules are chosen.
        heldout: Folders of traces that are reported on; default: the same.
        family: What cascades may set (`benchmarks.routers.joint`): match lengths alone, or with
            `cascade` the probabilities of lookup, too, which takes several times as long.
        costs: Name of the published costs.
        batches: Requests in a round.
        longest: Leave out texts of more new tokens: a text that runs to its limit repeats itself
            without end, and a few such texts are most of a data set's tokens.
        policies: Folders of trained routers; each is played at every batch.
        json: Write the figures to this file.
    """

    traces: tuple[Path, ...] = (Path("runs/published/train"),)
    heldout: tuple[Path, ...] = ()
    family: Literal["cascade by match length", "cascade by score", "cascade"] = (
        "cascade by match length"
    )
    costs: str = "llama3.1-8b-h100"
    batches: tuple[int, ...] = (1, 8, 32, 64)
    longest: int | None = None
    policies: tuple[Path, ...] = ()
    json: Path | None = None


def compare(args: PublishedArgs) -> Result:
    """Chooses, plays, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args)
    chosen_on = read_shorter(args.traces, args.longest)
    heldout = read_shorter(args.heldout, args.longest) if args.heldout else chosen_on
    routers = {str(path): load_learned_policy(path, heldout.origin) for path in args.policies}
    sets = list(dict.fromkeys(text.category for text in heldout.texts))
    cells: Result = {}
    for batch in args.batches:
        model = named_cost_model(f"{args.costs}@{batch}", heldout.origin.drafters)
        learned, tested = Walks(chosen_on, model), Walks(heldout, model)
        for name in [*sets, *([ALL] if len(sets) > 1 else [])]:
            family = FAMILIES[args.family]
            figures = _cell(learned.only(name), tested.only(name), family, routers)
            cells[f"{name} {batch}"] = {"set": name, "batch": batch, **figures}
    return finish(
        tables,
        args,
        {
            "texts": {"chosen on": len(chosen_on.texts), "reported on": len(heldout.texts)},
            "traces": heldout.origin.describe(),
            "cells": cells,
        },
    )


def read_shorter(folders: Sequence[Path], longest: int | None) -> TraceSet:
    """Reads traces together, without texts of more than so many new tokens.

    Raises:
        DraftgymError: No folder, folders that cannot be mixed, or no text that is short enough.
    """
    if not folders:
        raise DraftgymError("--traces names nothing", "name folders of traces")
    first, *others = map(read_traces, folders)
    mixed = first.mixed_with(others)
    texts = [text for text in mixed.texts if longest is None or len(text.tokens) <= longest]
    if not texts:
        raise DraftgymError(f"no text is as short as --longest {longest}", "give more")
    return replace(mixed, texts=texts)


class Walks:
    """Texts as each arm alone writes them, worked out once for all data sets that they belong to.

    Args:
        traces: The texts.
        model: What rounds cost.

    Attributes:
        traces: Those of them that have a round; of one data set, if `only` made it.
    """

    def __init__(self, traces: TraceSet, model: CostModel) -> None:
        self.traces = replace(traces, texts=[text for text in traces.texts if len(text)])
        self.model, self._all = model, self.traces
        self._found = dict[Arm, dict[str, Work]]()

    def only(self, category: str) -> Walks:
        """Those of one data set, or all."""
        part = copy(self)
        part.traces = self.traces if category == ALL else self.traces.only([category])
        return part

    def works(self, arm: Arm) -> list[Work]:
        """What each text takes with an arm."""
        if arm not in self._found:
            walks = (walk_single(text, arm) for text in price_traces(self._all, [arm], self.model))
            self._found[arm] = {one.question_id: Work(one.tokens, one.seconds) for one in walks}
        return [self._found[arm][text.question_id] for text in self.traces.texts]


class WalkedTuner(Tuner):
    """A tuner that looks up how fast arms are."""

    def __init__(self, walks: Walks, arms: Sequence[Arm]) -> None:
        super().__init__(walks.traces, arms)
        self._walks = walks

    def speed(self, arm: Arm) -> float:
        """Tokens per second of writing all texts with it."""
        return speed(self._walks.works(arm))


def _cell(
    chosen_on: Walks, heldout: Walks, family: Family, routers: Mapping[str, Policy]
) -> Result:
    """One data set at one batch."""
    arms = list(map(parse_arm, chosen_on.traces.origin.arms))
    tuner = WalkedTuner(chosen_on, arms)
    single = max([*arms, PLAIN_ARM], key=tuner.speed)
    rule = tuner.best(family) or single
    plain, reference = heldout.works(PLAIN_ARM), heldout.works(single)
    gains = {"rule": _gain(heldout.works(rule), reference)}
    for name, policy in routers.items():
        played = play_policy(heldout.traces, policy, heldout.model)
        gains[name] = _gain([text.work for text in played], reference)
    texts = price_traces(heldout.traces, [*arms, PLAIN_ARM], heldout.model)
    price = greedy_price(texts)
    greedy = [walk_greedy(text, price) for text in texts]
    gains["oracle"] = _gain([Work(walk.tokens, walk.seconds) for walk in greedy], reference)
    return {
        "texts": len(texts),
        "single": str(single),
        "rule": str(rule),
        "over_plain": list(ends(speed_ratio(reference, plain))),
        "best_single_here": str(max(arms, key=lambda arm: speed(heldout.works(arm)))),
        "gains": gains,
    }


def _gain(works: Sequence[Work], reference: Sequence[Work]) -> list[float]:
    """What is gained over the reference, with its interval."""
    return [end - 1 for end in ends(speed_ratio(works, reference))]


def tables(result: Json) -> list[Table]:
    """One row a data set and batch."""
    rows = list(result["cells"].values())
    chosen, reported = result["texts"].values()
    names = [name for name in rows[0]["gains"] if name not in ("rule", "oracle")]
    columns: dict[str, Cell] = {
        "texts": lambda row: f"{row['set']} ({row['texts']})",
        "batch": lambda row: str(row["batch"]),
        "best single arm": lambda row: f"`{row['single']}`",
        "over plain": lambda row: "{:.2f} ({:.2f} to {:.2f})".format(*row["over_plain"]),
        "best cascade": lambda row: f"`{row['rule']}`",
        **{
            told: _told(name)
            for name, told in [
                ("rule", "cascade over single, %"),
                *((name, f"{name} over single, %") for name in names),
                ("oracle", "greedy oracle over single, %"),
            ]
        },
    }
    title = f"{result['traces']['target']}: {reported} texts; chosen on {chosen}"
    return [Table.of(title, rows, columns)]


def _told(name: str) -> Cell:
    return lambda row: "{} ({} to {})".format(*map(percent, row["gains"][name]))


if __name__ == "__main__":
    with exit_on_user_error():
        compare(tyro.cli(PublishedArgs, description=__doc__))
