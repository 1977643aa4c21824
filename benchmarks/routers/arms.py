"""Every arm at every position of held-out texts: acceptance, who beats whom, and what routing wins.

    $ draftgym collect --arms eagle3:4 eagle3:5x16 dflash:4 dflash:4x16 ngram:8 \
        --limit-per-category 10 --out runs/traces
    $ python -m benchmarks.routers.arms --traces runs/traces --json runs/arms.json

Traces say what every arm would have drafted at every position of a text, so acceptance lengths are
exact: those of decoding with that arm alone. Times are a cost model's: that of the host that
collected the traces, unless another is named. Wall-clock is measured by `draftgym evaluate`, beside
other engines with `--against`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import tyro

from benchmarks.report import Json, Table, each, percent
from benchmarks.results import Result, check, finish
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.costs.published import named_cost_model
from draftgym.decoding.errors import exit_on_user_error
from draftgym.rollouts.replay.oracle import total, walk_single
from draftgym.rollouts.replay.pricing import PLAIN_ARM, PricedText, one_each, price_traces
from draftgym.rollouts.replay.prizes import Prize, best_arm, duel, largest_pair, prize, walk_texts
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.traces.file import read_traces

POSITIONS = (range(0, 32), range(32, 64), range(64, 1 << 30))
"""Parts of a text that duels are counted in."""

ALL_ARMS = "all arms and plain"
CHOICES = {
    "best_of_category": "best arm of each category",
    "best_of_prompt": "best arm of each prompt",
    "greedy_oracle": "greedy oracle, round by round",
    "exact_oracle": "exact oracle",
}
"""Choices that know more and more, in figures and in words."""


@dataclass(frozen=True, kw_only=True)
class ArmsArgs:
    """Compare arms position by position.

    Attributes:
        traces: Folder of traces (draftgym collect).
        arms: Only these arms of the traces: drafters with draft lengths (eagle3:4) or trees
            (eagle3:5x16: at most 5 deep, 16 nodes). By default every arm that was traced.
        cost_model: Times by this cost model: a file (JSON), or published costs by name
            (llama3.1-8b-h100); by default that of the host that collected.
        json: Write the figures to this file.
    """

    traces: Path = Path("runs/traces")
    arms: tuple[str, ...] = ()
    cost_model: Path | None = None
    json: Path = Path("runs/arms.json")


Groups = Mapping[str, Sequence[PricedText]]
"""Texts by category, and all of them."""


def compare_arms(args: ArmsArgs) -> Result:
    """Reads the traces, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args)
    traces = read_traces(args.traces)
    named = [parse_arm(text) for text in args.arms or traces.origin.arms]
    arms = [arm for arm in dict.fromkeys(named) if arm.drafts]
    model = traces.origin.cost_model
    if args.cost_model is not None:
        model = named_cost_model(args.cost_model, traces.origin.drafters)
    texts = price_traces(traces, [*arms, PLAIN_ARM], model)
    origin = {"traces": traces.origin.describe(), "cost_model": asdict(model)}
    return finish(tables, args, origin | summarise(texts, arms))


def summarise(texts: Sequence[PricedText], arms: Sequence[Arm]) -> Result:
    """Acceptance and speed per arm and category, duels, prizes and choices that know less.

    Args:
        texts: Priced texts that know these arms and `plain`.
        arms: Arms that draft.
    """
    groups = _by_category(texts)
    best = _best_of_each_drafter(texts, arms)
    prizes: dict[str, dict[str, Any]] = {name: {} for name in groups}
    for what, chosen in _sets(texts, arms, best).items():
        for name, figures in _prizes(groups, chosen).items():
            prizes[name][what] = figures
    return {
        "texts": {name: len(mine) for name, mine in groups.items() if name != ALL},
        "arms": {str(arm): {name: _arm(t, arm) for name, t in groups.items()} for arm in arms},
        "duels": {
            f"{first} / {second}": _duels(groups, first, second)
            for first, second in combinations(best, 2)
        },
        "prizes": prizes,
        "choices": _choices(groups),
    }


def _by_category(texts: Sequence[PricedText]) -> dict[str, list[PricedText]]:
    groups: dict[str, list[PricedText]] = {}
    for text in texts:
        groups.setdefault(text.category, []).append(text)
    return {**groups, ALL: list(texts)}


def _arm(texts: Sequence[PricedText], arm: Arm) -> dict[str, float]:
    mine = total([walk_single(text, arm) for text in texts])
    plain = total([walk_single(text, PLAIN_ARM) for text in texts])
    return {
        "acceptance_length": mine.acceptance_length,
        "predicted_speedup": plain.seconds / mine.seconds if mine.seconds else 1.0,
    }


def _best_of_each_drafter(texts: Sequence[PricedText], arms: Sequence[Arm]) -> list[Arm]:
    """The fastest arm of every drafter."""
    names = dict.fromkeys(arm.drafter for arm in arms)
    return [
        min(
            (arm for arm in arms if arm.drafter == name),
            key=lambda arm: total([walk_single(text, arm) for text in texts]).seconds,
        )
        for name in names
    ]


def _duels(groups: Groups, first: Arm, second: Arm) -> dict[str, Any]:
    by_category = {name: asdict(duel(texts, first, second)) for name, texts in groups.items()}
    by_position = {
        f"from_{part.start}": asdict(duel(groups[ALL], first, second, part)) for part in POSITIONS
    }
    return by_category | by_position


def _sets(
    texts: Sequence[PricedText], arms: Sequence[Arm], best: Sequence[Arm]
) -> dict[str, Sequence[Arm]]:
    """Sets of arms whose prize is reported: each pair of drafters, the widest pair, and all."""
    widest = largest_pair(texts)
    return {
        **{f"{a} / {b}": [a, b] for a, b in combinations(best, 2)},
        f"largest pair: {widest[0]} / {widest[1]}": widest,
        "best of each drafter": best,
        ALL_ARMS: [*arms, PLAIN_ARM],
    }


def _prizes(groups: Groups, arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """What perfect choice among some arms wins, in each group of texts."""
    in_time = _walk_groups(groups, arms, priced=True)
    in_tokens = _walk_groups(groups, arms, priced=False)
    return {
        name: {
            "best_single": str(in_time[name].best),
            "gain_in_time": in_time[name].gain,
            "oracle_acceptance_length": in_tokens[name].optimal.acceptance_length,
            "gain_in_acceptance_length": in_tokens[name].gain,
        }
        for name in groups
    }


def _walk_groups(groups: Groups, arms: Sequence[Arm], priced: bool) -> dict[str, Prize]:
    texts = [text.only(arms) for text in groups[ALL]]
    walks = walk_texts(texts if priced else [one_each(text) for text in texts])
    mine = {name: [w for w in walks if name in (w.category, ALL)] for name in groups}
    return {name: prize(some) for name, some in mine.items()}


def _choices(groups: Groups) -> dict[str, dict[str, Any]]:
    """How far choices get that know more and more: gains over the one arm that is best over all."""
    walks = walk_texts(groups[ALL])
    best = best_arm(walks)
    figures = {}
    for name in groups:
        mine = [w for w in walks if name in (w.category, ALL)]
        found = prize(mine, best)
        figures[name] = {
            "single": str(best),
            "best_here": str(best_arm(mine)),
            "best_of_category": found.gain_of(found.by_category),
            "best_of_prompt": found.gain_of(found.by_prompt),
            "greedy_oracle": found.gain_of(found.greedy),
            "exact_oracle": found.gain,
        }
    return figures


def tables(result: Json) -> list[Table]:
    """Acceptance and speed of every arm, duels, the prize of routing, and who knows how much."""
    origin, groups = result["traces"], list(result["prizes"])
    counts = ", ".join(f"{count} {name}" for name, count in result["texts"].items())
    texts = (
        f"{origin['target']}, {origin['dtype']}; texts: {counts}; up to "
        f"{origin['max_new_tokens']} tokens, temperature {origin['temperature']:g}"
    )
    lengths = each(groups, lambda one, group: f"{one[group]['acceptance_length']:.2f}")
    speeds = each(groups, lambda one, group: f"{one[group]['predicted_speedup']:.2f}")
    title = f"{texts}\nacceptance length: committed tokens per round, bonus included"
    made = [Table.named(title, "arm", result["arms"], lengths)]
    title = "speed-up over plain decoding by the cost model"
    made.append(Table.named(title, "arm", result["arms"], speeds))
    if duels := result["duels"]:  # two drafters or more
        title = "who commits more, % of positions (first / second; the rest are ties)"
        won = each(
            next(iter(duels.values())),
            lambda one, part: f"{100 * one[part]['first']:.0f}/{100 * one[part]['second']:.0f}",
        )
        made.append(Table.named(title, "arms", duels, won))
    prizes, choices = result["prizes"], result["choices"]
    gains = {
        **each(groups, lambda what, group: percent(prizes[group][what]["gain_in_time"])),
        "all, in tokens": lambda what: percent(prizes[ALL][what]["gain_in_acceptance_length"]),
    }
    title = "the prize: exact oracle over the best single arm of each set there, % of speed"
    made.append(Table.named(title, "arms", {what: what for what in prizes[ALL]}, gains))
    single = choices[ALL]["single"]
    title = f"who knows how much: gain over always {single}, % of speed; all arms and plain"
    known = each(groups, lambda key, group: percent(choices[group][key]))
    made.append(Table.named(title, "choice", {told: key for key, told in CHOICES.items()}, known))
    return made


if __name__ == "__main__":
    with exit_on_user_error():
        compare_arms(tyro.cli(ArmsArgs, description=__doc__))
