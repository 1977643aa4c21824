"""Multi-SPIN's figures 6 to 8 again, from its own model, beside what its text states.

    $ python -m benchmarks.schedulers.paper --json runs/multispin_paper.json
    $ python -m benchmarks.schedulers.paper --draws 10 --rounds 2 --settings multispin-llama2

Tokens are accepted as Table I says, channels fade anew each round, and the scheduler knows both.
`ratio` is the paper's figure, the mean over rounds of tokens a second; `total` is all tokens over
all seconds, where a round in a deep fade counts for what it lasts. Intervals are 95 % bootstraps
over draws (cells); gains are paired. Power and devices' times are calibrated
(`draftgym.envs.cell.settings`), because the paper does not disclose them: goodputs are no
independent confirmation, shapes are.

1. Goodput of all rules (figure 6), by bandwidth (7) and number of users (8).
2. Whom they give the band: rank correlations with channel, acceptance and device.
3. What a decision takes on this machine: by the clock, and without waiting for the processor.
4. What smaller payloads save. With `scalar`, distributions of rejected tokens follow; plans do not
   reckon with that. `tokens` is enough for the coupled rule, which accepts less often than
   rejection, by how much depends on the models: `tokens, at worst` takes the least it guarantees.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from benchmarks.report import Json, Table, each, interval
from benchmarks.results import Result, check, finish
from benchmarks.schedulers.paper_rounds import Condition, Played, Rounds, play
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.envs.radio.payload import PAYLOAD_MODES, make_payload
from draftgym.policies.multispin.uplink import Floats
from draftgym.policies.schedulers.rules import RULES
from draftgym.rollouts.report.statistics import Interval, bootstrap, ratio_of_sums

HERTZ = (5e6, 10e6, 15e6, 20e6)
"""Bandwidths of figure 7."""
USERS = tuple(range(10, 25, 2))
"""Numbers of users of figure 8."""
BEST = "heterogeneous"
TOGETHER = ("fixed", "uniform-bandwidth", "homogeneous", BEST)
"""Rules for users who share the band and a pass."""
GOODPUT = {
    "multispin-llama2": {"heterogeneous": "145", "p2p": "31.5"},
    "multispin-qwen3.5": {"heterogeneous": "153"},
}
"""Tokens a second that the paper states (about; figure 6); the rest are curves without numbers. P2P
is 145 / 4.6."""
OVER_FIXED = {
    "multispin-llama2": {"5": "1.88", "10 users": "1.21", "24 users": "1.67"},
    "multispin-qwen3.5": {"5": "1.88", "10 users": "1.29", "24 users": "over 1.80"},
}
"""Heterogeneous over fixed as stated: at 5 MHz (figure 7), and where figure 8 begins and ends."""
GOAL_MS = 5.0
"""What a decision for 20 users should stay below."""


@dataclass(frozen=True, kw_only=True)
class MultispinPaperArgs:
    """What to evaluate.

    Attributes:
        settings: Calibrated settings of the paper.
        draws: Cells: tasks, devices and mean gains.
        rounds: Rounds of each, with fading of their own; the paper's averages are over 10.
        seed: Seed of all draws.
        min_length: Shortest draft: 1 in the paper, 0 lets a user skip drafting.
        json: Write the figures to this file.
    """

    settings: tuple[str, ...] = tuple(GOODPUT)
    draws: int = 50
    rounds: int = 10
    seed: int = 0
    min_length: int = 1
    json: Path | None = None


def evaluate(args: MultispinPaperArgs) -> Result:
    """Plays all rounds, shows and writes the figures.

    Raises:
        DraftgymError: Bad arguments.
    """
    check(args, "draws", "rounds")
    if args.min_length not in (0, 1):
        raise DraftgymError(f"--min-length is {args.min_length}", "give 1, or 0 to allow skipping")
    if args.seed < 0:
        raise DraftgymError(f"--seed is {args.seed}", "give 0 or more")
    if not args.settings:
        raise DraftgymError("--settings names none", "leave it out for both settings")
    drawn = {
        name: Rounds.draw(name, args.draws, args.rounds, max(USERS), args.seed)
        for name in args.settings
    }
    figures = {name: figures_of(one, args.min_length) for name, one in drawn.items()}
    return finish(tables, args, {"settings": figures})


def figures_of(rounds: Rounds, min_length: int = 1) -> Result:
    """All figures of a setting."""
    condition = Condition(rounds.setting.payload, min_length=min_length)
    return {
        "figure_6": figure_6(rounds, condition),
        "figure_7": {
            f"{hertz / 1e6:g}": _gains(play_rules(rounds, replace(condition, hertz=hertz)))
            for hertz in HERTZ
        },
        "figure_8": {
            str(users): _gains(play_rules(rounds, replace(condition, users=users)))
            for users in USERS
        },
        "who_gets_band": who_gets_band(rounds, condition),
        "decision_ms": decision_times(rounds, condition),
        "payloads": payloads(rounds, condition),
    }


def play_rules(
    rounds: Rounds, condition: Condition, rules: Sequence[str] = TOGETHER
) -> dict[str, Played]:
    """The same rounds by every rule; `p2p` gives each user a cell of its own."""
    return {name: play(rounds, RULES[name], condition, name == "p2p") for name in rules}


def goodput(played: Played) -> dict[str, Interval]:
    """Tokens a second of all users together, in both ways."""
    sums = [played.tokens.sum(axis=1), played.seconds.sum(axis=1)]
    return {
        "ratio": ratio_of_sums([(mean, 1.0) for mean in played.goodput.tolist()]),
        "total": ratio_of_sums(np.stack(sums, axis=1).tolist()),
    }


def gain(mine: Played, other: Played) -> dict[str, Interval]:
    """Goodput as a multiple of another rule's, in both ways."""
    ratios = np.stack([mine.goodput, other.goodput], axis=1)
    sums = [part.sum(axis=1) for p in (mine, other) for part in (p.tokens, p.seconds)]
    return {
        "ratio": ratio_of_sums(ratios.tolist()),
        "total": bootstrap(
            np.stack(sums, axis=1).tolist(), lambda s: s[:, 0] / s[:, 1] / (s[:, 2] / s[:, 3])
        ),
    }


def figure_6(rounds: Rounds, condition: Condition) -> Result:
    """Goodput of every rule, and what the heterogeneous one gains over it."""
    played = play_rules(rounds, condition, ("p2p", *TOGETHER))
    return {
        name: {
            "goodput": _plain(goodput(one)),
            "heterogeneous_over_it": _plain(gain(played[BEST], one)),
        }
        for name, one in played.items()
    }


def _gains(played: Mapping[str, Played]) -> Result:
    others = [name for name in played if name != BEST]
    return {
        "goodput": {name: _plain(goodput(one)) for name, one in played.items()},
        "heterogeneous_over": {name: _plain(gain(played[BEST], played[name])) for name in others},
    }


def who_gets_band(rounds: Rounds, condition: Condition) -> Result:
    """Spearman's correlation of users' shares with what they have, mean over rounds, by rule."""
    found = {}
    shape = (*rounds.snr.shape[:2], condition.users)
    users = slice(condition.users)
    has = {
        "efficiency": rounds.snr[..., users],  # ranks of log2(1 + SNR) are those of the SNR
        "acceptance": np.broadcast_to(rounds.acceptance[:, None, users], shape),
        "seconds_per_token": np.broadcast_to(rounds.draft_seconds[:, None, users], shape),
    }
    for name, one in play_rules(rounds, condition, ("homogeneous", BEST)).items():
        means = {what: rank_correlation(one.shares, x).mean(axis=1) for what, x in has.items()}
        found[name] = {
            what: asdict(ratio_of_sums([(value, 1.0) for value in mean.tolist()]))
            for what, mean in means.items()
        }
    return found


def rank_correlation(a: ArrayLike, b: ArrayLike) -> Floats:
    """Spearman's rank correlation along the last axis; equals share their mean rank.

    It is 0 where either side is constant, which says nothing about the other.
    """
    ranks = [rankdata(x, axis=-1) for x in (a, b)]
    x, y = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    spread = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return np.asarray((x * y).sum(axis=-1) / np.where(spread > 0, spread, 1.0))


def decision_times(rounds: Rounds, condition: Condition) -> Result:
    """Milliseconds of one decision, for a single round of every draw in turn.

    Args:
        rounds: The first round of each draw is planned.
        condition: Band, users and payload.

    Returns:
        Percentiles and the fastest, by rule and by clock: `wall` is what passes, `cpu` leaves out
        what other processes take, which on a busy machine is most of it.
    """
    found: Result = {}
    for name in ("homogeneous", BEST):
        times = np.array([_decide(rounds, condition, name, d) for d in range(len(rounds.snr))])
        found[name] = {
            clock: {
                **{f"p{p}": float(np.percentile(column, p)) for p in (10, 50, 90)},
                "fastest": float(column.min()),
            }
            for clock, column in zip(("wall", "cpu"), times.T * 1e3, strict=True)
        }
    return found


def _decide(rounds: Rounds, condition: Condition, name: str, draw: int) -> tuple[float, float]:
    """Seconds by the wall clock, and of this thread."""
    problem = rounds.problem(draw, condition, 0)
    RULES[name](problem)  # warms up caches, as the round before it would
    wall, cpu = time.perf_counter(), time.thread_time()
    RULES[name](problem)
    return time.perf_counter() - wall, time.thread_time() - cpu


def payloads(rounds: Rounds, condition: Condition) -> Result:
    """What smaller uploads save, by the heterogeneous rule.

    `tokens` accepts as Table I says, like the others: what the coupled rule loses against rejection
    depends on the models. `tokens, at worst` takes the least that it guarantees instead.
    """
    modes = {mode: make_payload(mode, rounds.setting.vocabulary) for mode in PAYLOAD_MODES}
    cases = {mode: replace(condition, payload=payload) for mode, payload in modes.items()}
    cases["tokens, at worst"] = replace(cases["tokens"], coupled_bound=True)
    played = {name: play(rounds, RULES[BEST], case) for name, case in cases.items()}
    return {
        name: {
            "bits_per_token": cases[name].payload.bits_per_token,
            "drafted_per_user": float(one.lengths.mean()),
            "bits_per_round": asdict(ratio_of_sums([(b, 1.0) for b in one.bits.mean(1).tolist()])),
            "median_seconds": float(np.median(one.seconds)),
            "goodput": _plain(goodput(one)),
            "over_truncated": _plain(gain(one, played["truncated"])),
        }
        for name, one in played.items()
    }


def _plain(intervals: Mapping[str, Interval]) -> Result:
    return {name: asdict(one) for name, one in intervals.items()}


def tables(result: Json) -> list[Table]:
    """The tables of every setting."""
    return [
        table for name, figures in result["settings"].items() for table in _setting(name, figures)
    ]


def _setting(name: str, figures: Json) -> list[Table]:
    stated, paper = OVER_FIXED.get(name, {}), GOODPUT.get(name, {})
    rules = {
        rule: {"paper": paper.get(rule, ""), **one} for rule, one in figures["figure_6"].items()
    }
    ends = {users: stated.get(f"{users} users", "") for users in figures["figure_8"]}
    clocks = {"by the clock": "wall", "of the processor": "cpu"}
    return [
        Table.named(
            f"{name}, figure 6: 20 users, 10 MHz, tokens/s, heterogeneous's gain (95 %)",
            "rule",
            rules,
            {
                "ratio": lambda one: interval(one["goodput"]["ratio"], ".1f"),
                "total": lambda one: interval(one["goodput"]["total"], ".1f"),
                "gain over it": lambda one: interval(one["heterogeneous_over_it"]["ratio"], ".2f"),
                "by totals": lambda one: f"{one['heterogeneous_over_it']['total']['value']:.2f}",
                "paper": lambda one: str(one["paper"]),
            },
        ),
        *_gain_tables(f"{name}, figure 7: 20 users", "MHz", figures["figure_7"], stated),
        *_gain_tables(f"{name}, figure 8: 10 MHz", "users", figures["figure_8"], ends),
        Table.named(
            f"{name}: rank correlation of a user's share of the band with its own (95 %)",
            "rule",
            figures["who_gets_band"],
            {
                "spectral efficiency": lambda one: interval(one["efficiency"], ".2f"),
                "acceptance": lambda one: interval(one["acceptance"], ".2f"),
                "seconds per token": lambda one: interval(one["seconds_per_token"], ".2f"),
            },
        ),
        Table.named(
            f"{name}: ms of a decision for 20 users, median (p10-p90); the goal is {GOAL_MS:g}",
            "rule",
            figures["decision_ms"],
            each(clocks, lambda one, clock: _spread(one[clocks[clock]])),
        ),
        Table.named(
            f"{name}: what smaller payloads save, heterogeneous, 20 users, 10 MHz",
            "payload",
            figures["payloads"],
            {
                "bits/token": lambda one: f"{one['bits_per_token']:,}",
                "drafted": lambda one: f"{one['drafted_per_user']:.2f}",
                "kbit/round": lambda one: f"{one['bits_per_round']['value'] / 1e3:,.1f}",
                "ratio": lambda one: interval(one["goodput"]["ratio"], ".1f"),
                "total": lambda one: f"{one['goodput']['total']['value']:.1f}",
                "over truncated": lambda one: interval(one["over_truncated"]["ratio"], ".2f"),
            },
        ),
    ]


def _gain_tables(title: str, head: str, points: Json, stated: Json) -> list[Table]:
    """Goodputs by the paper's figure, then gains by it, and the one over fixed by totals."""
    others = list(next(iter(points.values()))["heterogeneous_over"])
    goodputs = each(
        [*others, BEST], lambda one, who: f"{one['goodput'][who]['ratio']['value']:.1f}"
    )
    gains = {
        **each(others, lambda one, who: interval(one["heterogeneous_over"][who]["ratio"], ".2f")),
        "fixed, total": lambda one: interval(one["heterogeneous_over"]["fixed"]["total"], ".2f"),
        "fixed, paper": lambda one: str(one["stated"]),
    }
    told = {point: {"stated": stated.get(point, ""), **one} for point, one in points.items()}
    return [
        Table.named(f"{title}, tokens/s, by {head}", head, points, goodputs),
        Table.named(f"{title}, heterogeneous over others (95 %), by {head}", head, told, gains),
    ]


def _spread(clock: Json) -> str:
    spread = f"({clock['p10']:.2f}-{clock['p90']:.2f}), fastest {clock['fastest']:.2f}"
    return f"{clock['p50']:.2f} {spread}"


if __name__ == "__main__":
    with exit_on_user_error():
        evaluate(tyro.cli(MultispinPaperArgs, description=__doc__))
