"""Routers against each other on held-out traces: who learns how much of what routing can win?

    $ draftgym collect --prompts train --out runs/traces
    $ draftgym collect --prompts heldout --out runs/heldout
    $ python -m benchmarks.routers.routing --seeds 5 --json runs/routing.json

Every arm alone; of each family of rules that engines ship the arm that is best on the training
traces (`benchmarks.routers.joint`); bandits, stopping rules, WhiFlash's entropy and neural routers;
routers that learn from all arms (PPO, DQN, regression), each trained on the training traces with
several seeds, also deciding twice a round (`--twice`) and on several temperatures (`--also`); and
choices that know the outcome: the best arm per category and per prompt, greedy, and the exact
optimum (of one decision a round). The strongest baseline that is not trained comes first in tables.

Speeds are tokens over seconds by the cost model, all prompts together, against the single arm that
is best *on the held-out prompts*; intervals are paired bootstraps over prompts, for the seed of
median speed.

`--transfer` also trains without each category in turn and tests on it; `--sampled` tests the same
routers on traces at another temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.report import Cell, Json, Table, each, ends, percent
from benchmarks.results import Result, check, finish
from benchmarks.routers.contenders import (
    LEARNERS,
    Pair,
    Routers,
    Training,
    claim_run,
    is_trained,
    learned_router,
    learned_routers,
    simple_routers,
    single_arms,
)
from benchmarks.routers.joint import CASCADE, FAMILIES, GRAFT, Tuner
from draftgym.decoding.arms import PLAIN, Arm, Graft, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.decoder import RoutingPolicy
from draftgym.decoding.errors import exit_on_user_error
from draftgym.policies.routers.bandits import Bandit
from draftgym.policies.routers.rules import EntropyPolicy
from draftgym.policies.routers.survival import SurvivalPolicy
from draftgym.rollouts.prompts.sets import refuse_held_out
from draftgym.rollouts.replay.oracle import Walk
from draftgym.rollouts.replay.play import ReplayedText, play_policy
from draftgym.rollouts.replay.pricing import price_traces
from draftgym.rollouts.replay.prizes import TextWalks, best_arm, largest_pair, walk_texts
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.statistics import Interval, Work, speed_ratio
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, kw_only=True)
class RoutingArgs:
    """Compare routers on traces.

    Attributes:
        traces: Folder of traces of training prompts.
        heldout: Folder of traces of held-out prompts, with the same arms.
        arms: What routers choose from; default: all traced arms, the best cascade and the best
            graft of these on the training traces, and plain.
        pair: WhiFlash's two arms: autoregressive, then block diffusion. Its routers are trained on
            these, on the two arms with the largest prize on the training traces, and on the best
            cascades with their two drafters.
        seeds: How many times what depends on a seed is trained.
        rounds: Rounds of reinforcement learning.
        twice: Also train PPO and DQN that decide twice a round (RouterReplay-v1): among the best
            arm of each drafter on the training traces, the best cascade and plain.
        also: Also train PPO and DQN on a mixture with these traces of training prompts, which
            are of other temperatures.
        transfer: Also train without each category, and test on it.
        sampled: Folder of held-out traces at another temperature.
        run: Where trained routers are kept; what is there is not trained again, and refused if it
            was trained on other traces.
        threads: CPU threads; default: all cores.
        json: Write the figures to this file.
    """

    traces: Path = Path("runs/traces")
    heldout: Path = Path("runs/heldout")
    arms: tuple[str, ...] = ()
    pair: tuple[str, str] = ("eagle3:2", "dflash:2")
    seeds: int = 5
    rounds: int = 1_000_000
    twice: bool = False
    also: tuple[Path, ...] = ()
    transfer: bool = False
    sampled: Path | None = None
    run: Path = Path("runs/routing")
    threads: int | None = None
    json: Path = Path("runs/routing.json")


def compare_routers(args: RoutingArgs) -> Result:
    """Trains what is missing, plays everything, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args, "seeds")
    learned_from, heldout = read_traces(args.traces), read_traces(args.heldout)
    refuse_held_out(text.question_id for text in learned_from.texts)
    tuner = Tuner(learned_from, list(map(parse_arm, learned_from.origin.arms)))
    training = _training(args, learned_from, tuner)
    claim_run(training.run, training.traces, training.arms)
    pairs = _pairs(args, training, tuner)
    singles, learned = single_arms(training), learned_routers(training)
    routers = singles | simple_routers(training, pairs) | learned
    result: Result = {
        "texts": {"train": len(training.traces.texts), "heldout": len(heldout.texts)},
        "traces": {
            "train": training.traces.origin.describe(),
            "heldout": heldout.origin.describe(),
        },
        "arms": list(map(str, training.arms)),
        "families": {name: str(arm) for name, arm in training.families.items()},
        "thresholds": _thresholds(routers),
        "heldout": judge(routers, heldout, training.alone),
    }
    if args.sampled is not None:
        sampled = read_traces(args.sampled)
        result["traces"]["sampled"] = sampled.origin.describe()
        costs = heldout.origin.cost_model  # the same ones, so that only acceptance differs
        routers = singles | learned
        result["sampled"] = judge(routers, sampled, training.alone, costs)
    if args.transfer:
        result["transfer"] = _transfer(training, heldout, learned)
    return finish(tables, args, result)


def judge(
    routers: Routers,
    traces: TraceSet,
    arms: Sequence[Arm],
    model: CostModel | None = None,
) -> Result:
    """Every router on some texts, beside choices that know the outcome.

    Args:
        routers: Whom to judge.
        traces: The texts.
        arms: What knowing choices choose from, and the reference is the best of.
        model: What rounds cost; None takes the traces' own.
    """
    walks = walk_texts([text for text in price_traces(traces, arms, model) if len(text)])
    best = best_arm(walks)
    reference = [_work(walk.singles[best]) for walk in walks]
    optimum = [_work(walk.optimal) for walk in walks]
    categories = [walk.category for walk in walks]
    played = {name: [_play(traces, one, model) for one in seeds] for name, seeds in routers.items()}
    rows = {
        name: {"trained": is_trained(name), **_row(runs, reference, optimum, categories)}
        for name, runs in played.items()
    }
    knowing = {
        name: _against(works, reference, optimum, categories)
        for name, works in _knowing(walks).items()
    }
    return {"best_single": str(best), "routers": rows, "knowing": knowing}


def _training(args: RoutingArgs, traces: TraceSet, tuner: Tuner) -> Training:
    families = tuner.families()
    if args.arms:
        arms = list(map(parse_arm, args.arms))
    else:
        joint = [families[name] for name in (CASCADE, GRAFT) if name in families]
        arms = [*map(parse_arm, traces.origin.arms), *joint, parse_arm(PLAIN)]
    traces.check_arms(arms)
    settings = args.rounds, args.seeds, args.run, args.threads
    twice = _for_two_decisions(arms, tuner) if args.twice else ()
    return Training(args.traces, traces, tuple(arms), *settings, families, twice, args.also)


def _for_two_decisions(arms: Sequence[Arm], tuner: Tuner) -> tuple[Arm, ...]:
    """Few of some arms: each comes in as many forms as the second decision has levels."""
    drafting = [arm for arm in arms if arm.drafts and not isinstance(arm, Graft)]
    best = {one.drafter: one for one in sorted(drafting, key=tuner.speed)}
    return (*best.values(), parse_arm(PLAIN))


def _pairs(args: RoutingArgs, training: Training, tuner: Tuner) -> list[Pair]:
    """WhiFlash's pair, that with the largest prize on the training traces, and its cascades.

    None where traces do not tell what its routers read.
    """
    if not training.traces.origin.holds_states:
        return []  # they read the target's hidden states, or how sure it was
    first, second = map(parse_arm, args.pair)
    training.traces.check_arms([first, second])
    texts = price_traces(training.traces, training.arms)
    pairs = [(first, second), largest_pair([text for text in texts if len(text)])]
    one, other = (tuner.best(FAMILIES[CASCADE], arm.drafter) for arm in (first, second))
    if one and other and one != other:
        pairs.append((one, other))
    return pairs


def _thresholds(routers: Routers) -> dict[str, float]:
    """Tuned thresholds of the entropy rules, which nobody else writes down."""
    rules = {name: seeds[0] for name, seeds in routers.items()}
    return {n: rule.threshold for n, rule in rules.items() if isinstance(rule, EntropyPolicy)}


def _play(traces: TraceSet, policy: RoutingPolicy, model: CostModel | None) -> list[ReplayedText]:
    # Who goes on learning meets the texts one after the other, as in serving.
    learning = isinstance(policy, Bandit | SurvivalPolicy)
    return play_policy(traces, policy, model, together=not learning)


def speed(works: Sequence[Work]) -> float:
    """Tokens a second, all texts together."""
    return sum(work.tokens for work in works) / sum(work.seconds for work in works)


def _row(
    runs: Sequence[Sequence[ReplayedText]],
    reference: Sequence[Work],
    optimum: Sequence[Work],
    categories: Sequence[str],
) -> Result:
    """Figures of the seed of median speed, and the spread over seeds."""
    speeds = [speed([text.work for text in run]) for run in runs]
    median = int(np.argsort(speeds)[(len(speeds) - 1) // 2])
    middle = runs[median]
    chosen = np.sum([text.chosen for text in middle], axis=0)
    base = speed(reference)
    return {
        **_against([text.work for text in middle], reference, optimum, categories),
        "median_seed": median,
        "gain_by_seed": [speed / base - 1 for speed in speeds],
        "acceptance_length": sum(text.work.tokens for text in middle) / int(chosen.sum()),
        "arm_shares": (chosen / chosen.sum()).round(4).tolist(),
    }


def _against(
    works: Sequence[Work],
    reference: Sequence[Work],
    optimum: Sequence[Work],
    categories: Sequence[str],
) -> Result:
    """Speed against the best single arm, with intervals, and the share of the possible gain."""
    over = speed_ratio(works, reference)
    possible = speed(optimum) / speed(reference) - 1
    by_category = {}
    for name in dict.fromkeys(categories):
        rows = [index for index, category in enumerate(categories) if category == name]
        mine, theirs = [works[i] for i in rows], [reference[i] for i in rows]
        by_category[name] = _gain(speed_ratio(mine, theirs))
    return {
        "tokens_per_second": speed(works),
        "gain": _gain(over),
        "by_category": by_category,
        "share_of_possible": (over.value - 1) / possible if possible else 0.0,
    }


def _knowing(walks: Sequence[TextWalks]) -> dict[str, list[Work]]:
    """Choices that know the outcome: less and less is hidden from them."""
    best_of = {
        category: best_arm([walk for walk in walks if walk.category == category])
        for category in dict.fromkeys(walk.category for walk in walks)
    }
    return {
        "best arm of each category": [_work(w.singles[best_of[w.category]]) for w in walks],
        "best arm of each prompt": [
            _work(min(walk.singles.values(), key=lambda one: one.seconds)) for walk in walks
        ],
        "greedy, knowing each round": [_work(walk.greedy) for walk in walks],
        "exact optimum": [_work(walk.optimal) for walk in walks],
    }


def _transfer(training: Training, heldout: TraceSet, learned: Routers) -> Result:
    """Each category by routers that never saw it, beside routers that did (first seed)."""
    categories = sorted({text.category for text in heldout.texts})
    figures: Result = {}
    for left_out in categories:
        others = tuple(name for name in categories if name != left_out)
        routers = single_arms(training)
        for name in LEARNERS:
            routers[f"{name}, never saw it"] = [learned_router(training, name, 0, others)]
            routers[f"{name}, all categories"] = [learned[name][0]]
        figures[left_out] = judge(routers, heldout.only([left_out]), training.alone)
    return figures


def _work(walk: Walk) -> Work:
    return Work(walk.tokens, walk.seconds)


def _gain(ratio: Interval) -> list[float]:
    """Value and interval of a ratio, less one."""
    return [ratio.value - 1, ratio.low - 1, ratio.high - 1]


def tables(result: Json) -> list[Table]:
    """Held-out texts; the same at another temperature; transfer."""
    title = "Held-out traces ({heldout} texts; {train} to train)".format(**result["texts"])
    families = result.get("families", {})
    made = [_judged(title, result["heldout"], families)]
    if "sampled" in result:
        made.append(_judged("Sampled texts", result["sampled"], families))
    if transfer := result.get("transfer"):
        gains = each(transfer, lambda name, one: percent(transfer[one]["routers"][name]["gain"][0]))
        names = next(iter(transfer.values()))["routers"]
        title = "Trained without the category it is tested on: gain there, %"
        made.append(Table.of(title, names, {"who": str, **gains}))
    return made


def _judged(title: str, judged: Json, families: Mapping[str, str]) -> Table:
    """Everybody, slowest first, but for the strongest baseline that is not trained: it is first."""
    rules: dict[str, list[str]] = {}
    for family, arm in families.items():
        rules.setdefault(arm, []).append(family)
    rows = [{"name": name, **row} for name, row in judged["routers"].items()]
    rows += [{"name": f"*{name}*", **row} for name, row in judged["knowing"].items()]
    simple = [row for row in rows if row.get("trained") is False]
    first = max(simple, key=_gained) if simple else None
    rows.sort(key=lambda row: (row is not first, _gained(row)))
    categories = list(rows[0]["by_category"])
    columns: dict[str, Cell] = {
        "who": lambda row: "; ".join([str(row["name"]), *rules.get(row["name"], [])]),
        **each(categories, lambda row, name: percent(row["by_category"][name][0])),
        ALL: lambda row: percent(row["gain"][0]),
        "95 %": lambda row: "{1} to {2}".format(*map(percent, ends(row["gain"]))),
        "seeds": _seeds,
        "share": lambda row: f"{100 * row['share_of_possible']:.0f} %",
    }
    title += f": speed over `{judged['best_single']}`, the best single arm there, %"
    notes = [
        "95 %: interval over prompts, of the seed of median speed. share: of the possible gain. "
        "*slanted*: choices that know the outcome. The strongest untrained baseline comes first."
    ]
    return Table.of(
        title, rows, columns, lambda row: _gained(row) if "trained" in row else -np.inf, notes
    )


def _gained(row: Json) -> float:
    return float(row["gain"][0])


def _seeds(row: Json) -> str:
    seeds = row.get("gain_by_seed", [])
    return f"{percent(min(seeds))} to {percent(max(seeds))}" if len(seeds) > 1 else ""


if __name__ == "__main__":
    with exit_on_user_error():
        compare_routers(tyro.cli(RoutingArgs, description=__doc__))
