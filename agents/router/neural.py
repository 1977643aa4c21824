"""Trains the WhiFlash-Neural baseline on traces (arXiv 2606.07710, section 3.3.2).

    $ draftgym collect --prompts train --out runs/traces
    $ draftgym train-neural --traces runs/traces --first eagle3:2 --second dflash:2
    $ draftgym evaluate --policies runs/neural

At every position of a trace both arms are known, so the network learns the difference of their
tokens from the hidden state by plain regression. What it does not know is time; that is the
threshold's part. Writing is a renewal process: tokens per second in the long run are the mean
tokens of a round over its mean seconds. If `price` is the best such rate, a round with arm a is
worth `tokens_a - price * seconds_a`, so the first arm is right where

    dAL > price * (T_first - T_second)

with T the mean seconds of the arms' rounds. The price is the rate that this very rule achieves:
`priced_threshold` iterates until both agree. `--threshold grid` searches the threshold instead, as
the paper calibrates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from draftgym.agents.router.regression import (
    Examples,
    Fit,
    Fitting,
    RegressionArgs,
    fit,
    train_and_export,
)
from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.routers.neural import DifferenceNetwork, NeuralPolicy, save_neural_policy
from draftgym.rollouts.replay.play import Course, Totals, walk_single_arms
from draftgym.rollouts.traces.joint import made_by
from draftgym.rollouts.traces.trace import TraceSet

GRID = 100
"""Quantiles of the prediction that a search tries."""


@dataclass(frozen=True, kw_only=True)
class NeuralArgs(RegressionArgs):
    """Train the WhiFlash-Neural baseline.

    Attributes:
        first: Arm where it is predicted to commit enough more tokens.
        second: Arm elsewhere.
        out: Folder of the trained policy.
        threshold: price (from what rounds cost) or grid (the fastest on the training traces).
        dropout: Rate while training.
    """

    first: str = "eagle3:2"
    second: str = "dflash:2"
    out: Path = Path("runs/neural")
    threshold: Literal["price", "grid"] = "price"
    dropout: float = 0.1


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it does with the texts it was found on.

    Attributes:
        value: Tokens that the first arm must win by.
        speed: Tokens per second that the rule achieves.
        share: Part of the rounds that the first arm gets.
    """

    value: float
    speed: float
    share: float


def train_neural(args: NeuralArgs) -> NeuralPolicy:
    """Fits, finds the threshold, exports; returns the policy.

    Raises:
        DraftgymError: Bad settings, no traces, held-out prompts, arms that were not traced.
    """
    arms = (parse_arm(args.first), parse_arm(args.second))
    if arms[0] == arms[1]:
        raise DraftgymError(f"both arms are {arms[0]}", "name two arms with --first and --second")
    args.check()

    def fit_policy(train: TraceSet, validation: TraceSet) -> tuple[NeuralPolicy, dict[str, Any]]:
        train.require_states("the neural router")
        how = args.fitting, args.dropout, args.seed
        network, fitted = fit_difference(train, validation, arms, *how)
        find = priced_threshold if args.threshold == "price" else searched_threshold
        found = find(train, arms, network)
        policy = NeuralPolicy(network, arms, found.value, args.out.name)
        return policy, _report(policy, validation, fitted, found)

    return train_and_export(args, arms, fit_policy, save_neural_policy)


def fit_difference(
    train: TraceSet,
    validation: TraceSet,
    arms: Sequence[Arm],
    how: Fitting,
    dropout: float = 0.1,
    seed: int = 0,
) -> tuple[DifferenceNetwork, Fit]:
    """A network that predicts the difference of the arms' tokens from the hidden state.

    It is fitted on standardised hidden states and differences, and the scales are then folded into
    its two layers: the paper's network, only better conditioned.
    """
    hidden, difference = _positions(train, arms)
    scales = (*_scale(hidden), *_scale(difference))

    def examples(hidden: Tensor, difference: Tensor) -> Examples:
        mean, spread, middle, width = scales
        inputs, targets = (hidden - mean) / spread, (difference - middle) / width
        return Examples(lambda rows: (inputs[rows],), targets)

    torch.manual_seed(seed)
    network = DifferenceNetwork(hidden.shape[1], dropout)
    others = examples(*_positions(validation, arms))
    fitted = fit(network, examples(hidden, difference), others, how, seed)
    fold_scales(network, *scales)
    return network.requires_grad_(False), fitted


@torch.no_grad()
def fold_scales(
    network: DifferenceNetwork, mean: Tensor, spread: Tensor, middle: Tensor, width: Tensor
) -> None:
    """Makes a network of standardised numbers one of plain numbers.

    Args:
        network: Changed in place.
        mean: Of the hidden states `[d]`.
        spread: Their standard deviation `[d]`.
        middle: Mean of the differences, a scalar.
        width: Their standard deviation.
    """
    network.narrow.weight.div_(spread)
    network.narrow.bias.sub_(network.narrow.weight @ mean)
    network.difference.weight.mul_(width)
    network.difference.bias.mul_(width).add_(middle)


def priced_threshold(
    traces: TraceSet, arms: Sequence[Arm], network: DifferenceNetwork, rounds: int = 30
) -> Threshold:
    """The threshold that costs ask for, at the speed that it achieves; see the module's text.

    Starts at the price of the faster arm alone. Predictions are not perfect, so the iteration may
    end in a cycle; the fastest threshold that it passed is returned.
    """
    single = walk_single_arms(traces, arms)
    first, second = single.seconds / single.rounds.sum(1)
    price, seen = float(single.speeds.max()), []
    course = Course(traces, arms)
    predicted = predict_rows(course, network)
    for _ in range(rounds):
        value = price * float(first - second)
        seen += _thresholds(np.array([value]), course.walk(_actions(predicted, [value])))
        if abs(seen[-1].speed - price) < 1e-9 * price:
            break
        price = seen[-1].speed
    return max(seen, key=lambda one: one.speed)


def searched_threshold(
    traces: TraceSet, arms: Sequence[Arm], network: DifferenceNetwork, count: int = GRID
) -> Threshold:
    """The fastest of many thresholds, quantiles of the prediction."""
    rows = predict_rows(Course(traces, arms), network)
    values = np.unique(np.quantile(rows, np.linspace(0, 1, count), method="nearest"))
    values = np.append(np.nextafter(values[0], -np.inf), values)  # the first arm alone
    totals = Course(traces, arms, len(values)).walk(_actions(rows, values))
    return max(_thresholds(values, totals), key=lambda one: one.speed)


@torch.inference_mode()
def predict_rows(course: Course, network: DifferenceNetwork) -> NDArray[np.float32]:
    """Predicted difference at each row of some texts `[R]`."""
    return course.rows(lambda text: network(torch.tensor(text.hidden).float()).numpy())


def _actions(predicted: NDArray[np.float32], thresholds: Any) -> NDArray[np.int64]:
    values = np.asarray(thresholds, dtype=np.float32)
    return np.where(predicted > values[:, None], 0, 1)


def _thresholds(values: NDArray[Any], totals: Totals) -> list[Threshold]:
    rows = zip(values.tolist(), totals.speeds.tolist(), totals.shares[:, 0].tolist(), strict=True)
    return [Threshold(*row) for row in rows]


def _positions(traces: TraceSet, arms: Sequence[Arm]) -> tuple[Tensor, Tensor]:
    """Hidden states `[N, d]` and differences `[N]` at every position."""
    hidden = np.concatenate([text.hidden[:-1] for text in traces.texts], dtype=np.float32)
    first, second = (
        np.concatenate([made_by(text, arm).committed for text in traces.texts]) for arm in arms
    )
    return torch.from_numpy(hidden), torch.from_numpy(first - second).float()


def _scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the examples; 1 where all are alike."""
    spread = values.std(0, correction=0)
    return values.mean(0), torch.where(spread > 0, spread, torch.ones_like(spread))


def _report(
    policy: NeuralPolicy, validation: TraceSet, fitted: Fit, found: Threshold
) -> dict[str, Any]:
    course = Course(validation, policy.arms)
    predicted = predict_rows(course, policy.network)
    routed = course.walk(_actions(predicted, [found.value])).speeds
    alone = walk_single_arms(validation, policy.arms).speeds.round(2).tolist()
    names = [str(arm) for arm in policy.arms]
    return {
        "validation_r2": round(fitted.r2, 4),
        "epochs": fitted.epochs,
        "threshold_tokens": round(found.value, 4),
        "train_tokens_per_second": round(found.speed, 2),
        "train_share_of_first": round(found.share, 3),
        "validation_tokens_per_second": {
            "routed": round(float(routed[0]), 2),
            **dict(zip(names, alone, strict=True)),
        },
    }


def main(arguments: Sequence[str]) -> None:
    """`draftgym train-neural`."""
    train_neural(
        tyro.cli(NeuralArgs, args=arguments, description=__doc__, prog="draftgym train-neural")
    )
