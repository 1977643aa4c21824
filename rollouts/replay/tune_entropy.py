"""Tunes the threshold of the entropy policy, and its two arms, on traces of training prompts.

    $ draftgym collect --prompts train --out runs/traces
    $ draftgym tune-entropy --traces runs/traces

Replays the traces with every threshold of a fine grid for every pair of arms, keeps what writes the
most tokens per second by the cost model (the paper maximises tokens per second, too) and writes it
with its provenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_json
from draftgym.decoding.provenance import describe_host
from draftgym.policies.routers.rules import ENTROPY, THRESHOLD_FILE
from draftgym.rollouts.prompts.sets import refuse_held_out
from draftgym.rollouts.replay.play import Course
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True, kw_only=True)
class TuneEntropyArgs:
    """Tune the entropy policy.

    Attributes:
        traces: Folder of traces of training prompts. Never tune on prompts that results are
            reported on.
        autoregressive: Arms to try above the threshold.
        diffusion: Arms to try at or below it.
        thresholds: Size of the grid: quantiles of the entropy over all positions.
        output: Where the threshold and its provenance go.
    """

    traces: Path = Path("runs/traces")
    autoregressive: tuple[str, ...] = ("eagle3:2",)
    diffusion: tuple[str, ...] = ("dflash:2",)
    thresholds: int = 100
    output: Path = THRESHOLD_FILE


@dataclass(frozen=True)
class Tuning:
    """A pair of arms with every threshold of a grid.

    Attributes:
        arms: Above the threshold, and at or below it.
        thresholds: Nats, rising `[v]`.
        speeds: Tokens per second by the cost model `[v]`.
        shares: Part of the rounds that the first arm got `[v]`.
    """

    arms: tuple[Arm, Arm]
    thresholds: NDArray[np.float64]
    speeds: NDArray[np.float64]
    shares: NDArray[np.float64]

    @property
    def best(self) -> int:
        """Index of the fastest threshold; of equally fast ones the lowest."""
        return int(self.speeds.argmax())


def tune(args: TuneEntropyArgs) -> Tuning:
    """Replays, chooses, writes; returns the winning pair of arms with its grid.

    Raises:
        DraftgymError: No traces, held-out prompts among them, arms that were not traced.
    """
    if args.thresholds < 2:
        raise DraftgymError(f"--thresholds is {args.thresholds}", "give two or more")
    firsts, seconds = (
        [parse_arm(text) for text in texts] for texts in (args.autoregressive, args.diffusion)
    )
    if not (firsts and seconds):
        raise DraftgymError("a side of the threshold has no arm", "give --autoregressive eagle3:2")
    traces = read_traces(args.traces)
    traces.require_confidence("a threshold of entropy")
    refuse_held_out(text.question_id for text in traces.texts)
    tunings = [tune_pair(traces, pair, args.thresholds) for pair in product(firsts, seconds)]
    best = max(tunings, key=lambda tuning: tuning.speeds.max())
    body = describe(best, tunings, traces)
    write_json(args.output, body)
    _print(best, tunings, args.output)
    return best


def tune_pair(traces: TraceSet, arms: tuple[Arm, Arm], count: int) -> Tuning:
    """Every threshold of a grid for one pair of arms.

    Args:
        traces: Traces of training prompts.
        arms: Above the threshold, and at or below it.
        count: Quantiles of the entropy that the grid takes, ends included; 0 nats comes on top.
    """
    entropies = np.concatenate([text.signals[:-1, ENTROPY] for text in traces.texts])
    # Quantiles are entropies that occur: no threshold in between would choose otherwise.
    grid = np.quantile(entropies, np.linspace(0, 1, count), method="nearest")
    grid = np.unique(np.append(grid, 0.0)).astype(np.float32)
    course = Course(traces, arms, len(grid))
    entropy = course.rows(lambda text: text.signals[:, ENTROPY])
    totals = course.walk(np.where(entropy > grid[:, None], 0, 1))
    return Tuning(arms, grid.astype(np.float64), totals.speeds, totals.shares[:, 0])


def describe(best: Tuning, tunings: Sequence[Tuning], traces: TraceSet) -> dict[str, Any]:
    """The threshold with everything needed to judge it and to find it again."""
    origin = traces.origin
    first, second = best.arms
    names = [f"{threshold:.4g}" for threshold in best.thresholds]
    return {
        "threshold": float(best.thresholds[best.best]),
        "unit": "nats",
        "rule": f"{first} above the threshold, {second} at or below it",
        "arms": [str(first), str(second)],
        "tokens_per_second": dict(zip(names, best.speeds.round(2).tolist(), strict=True)),
        "autoregressive_share": dict(zip(names, best.shares.round(3).tolist(), strict=True)),
        "pairs": {_name(one): round(float(one.speeds.max()), 2) for one in tunings},
        "seconds": "by the cost model of the host that collected the traces",
        "texts": len(traces.texts),
        "positions": traces.positions,
        **{key: value for key, value in asdict(origin).items() if key not in _LEFT_OUT},
        "traces": origin.host,
        **describe_host(),
    }


_LEFT_OUT = {"cost_model", "host", "arms", "lags"}


def _name(tuning: Tuning) -> str:
    return " ".join(map(str, tuning.arms))


def _print(best: Tuning, tunings: Sequence[Tuning], output: Path) -> None:
    for tuning in tunings:
        at, mark = tuning.best, "  <- best" if tuning is best else ""
        ends = f"{tuning.speeds[0]:.2f} at 0 nats, {tuning.speeds[-1]:.2f} at the highest"
        print(
            f"{_name(tuning):24}  {tuning.thresholds[at]:6.3f} nats: {tuning.speeds[at]:7.2f} "
            f"tokens/s ({ends}), {tuning.shares[at]:.0%} autoregressive{mark}"
        )
    print(f"written: {output}")


def main(arguments: Sequence[str]) -> None:
    """`draftgym tune-entropy`."""
    tune(
        tyro.cli(TuneEntropyArgs, args=arguments, description=__doc__, prog="draftgym tune-entropy")
    )
