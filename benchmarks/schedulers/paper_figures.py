"""What Multi-SPIN's figures 6 to 8 show, and what they do not, of rounds that were drawn.

Every figure is a plain value, or an `Interval` from a bootstrap over draws (cells). Goodputs are
told twice: `ratio` is the paper's mean over rounds of tokens a second, `total` all tokens over all
seconds, which is what a user feels. Gains are paired: both sides played the same rounds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.schedulers.paper_rounds import Condition, Played, Rounds, play
from draftgym.envs.radio.payload import PAYLOAD_MODES, make_payload
from draftgym.policies.multispin.uplink import Floats
from draftgym.policies.schedulers.rules import RULES
from draftgym.rollouts.report.statistics import Interval, bootstrap, ratio_of_sums

HERTZ = (5e6, 10e6, 15e6, 20e6)
"""Bandwidths of figure 7."""
USERS = tuple(range(10, 25, 2))
"""Numbers of users of figure 8."""
MOST_USERS = max(USERS)
BEST = "heterogeneous"
TOGETHER = ("fixed", "uniform-bandwidth", "homogeneous", BEST)
"""Rules for users who share the band and a pass."""

Figures = dict[str, Any]


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


def figure_6(rounds: Rounds, condition: Condition) -> Figures:
    """Goodput of every rule, and what the heterogeneous one gains over it."""
    played = play_rules(rounds, condition, ("p2p", *TOGETHER))
    return {
        name: {
            "goodput": _plain(goodput(one)),
            "heterogeneous_over_it": _plain(gain(played[BEST], one)),
        }
        for name, one in played.items()
    }


def figure_7(rounds: Rounds, condition: Condition) -> Figures:
    """Figure 6 by bandwidth, by MHz."""
    return {
        f"{hertz / 1e6:g}": _gains(play_rules(rounds, replace(condition, hertz=hertz)))
        for hertz in HERTZ
    }


def figure_8(rounds: Rounds, condition: Condition) -> Figures:
    """Figure 6 by number of users."""
    return {
        str(users): _gains(play_rules(rounds, replace(condition, users=users))) for users in USERS
    }


def _gains(played: Mapping[str, Played]) -> Figures:
    others = [name for name in played if name != BEST]
    return {
        "goodput": {name: _plain(goodput(one)) for name, one in played.items()},
        "heterogeneous_over": {name: _plain(gain(played[BEST], played[name])) for name in others},
    }


def who_gets_band(rounds: Rounds, condition: Condition) -> Figures:
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
    ranks = [_ranks(np.asarray(x, float)) for x in (a, b)]
    x, y = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    spread = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return np.asarray((x * y).sum(axis=-1) / np.where(spread > 0, spread, 1.0))


def _ranks(values: Floats) -> Floats:
    mine, others = values[..., :, None], values[..., None, :]
    return np.asarray((others < mine).sum(axis=-1) + (others == mine).sum(axis=-1) / 2)


def decision_times(rounds: Rounds, condition: Condition) -> Figures:
    """Milliseconds of one decision, for a single round of every draw in turn.

    Args:
        rounds: The first round of each draw is planned.
        condition: Band, users and payload.

    Returns:
        Percentiles and the fastest, by rule and by clock: `wall` is what passes, `cpu` leaves out
        what other processes take, which on a busy machine is most of it.
    """
    found: Figures = {}
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


def payloads(rounds: Rounds, condition: Condition) -> Figures:
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


def _plain(intervals: Mapping[str, Interval]) -> Figures:
    return {name: asdict(one) for name, one in intervals.items()}
