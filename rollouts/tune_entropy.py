"""Tunes the threshold of the entropy policy on training prompts.

    $ python -m rollouts.tune_entropy

Decodes training prompts with every threshold of a grid, interleaved prompt by prompt, keeps the
one with the most tokens per second (as the paper does) and writes it with its provenance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from decoding.errors import DraftgymError, exit_on_user_error
from decoding.provenance import describe_drafters, describe_host, describe_target
from drafters.loading import find_checkpoints
from policies.entropy import (
    THRESHOLD_FILE,
    ThresholdMeasurement,
    throughputs,
    tune_threshold,
)
from policies.registry import make_policy
from rollouts.decode import DecodedText, decode_prompts
from rollouts.options import DecodingOptions
from rollouts.prompt_sets import interleave_categories, load_prompts

GRID = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 12.0)
"""Nats. 0 is the autoregressive arm alone, 12 (above the entropy of 160,000 equally likely tokens)
the diffusion arm alone."""


@dataclass(frozen=True, kw_only=True)
class TuneEntropyArgs(DecodingOptions):
    """Tune the entropy policy's threshold.

    Attributes:
        grid: Thresholds to try, nats.
        prompts: train, or a JSON-lines file. Never tune on prompts that results are reported on.
        limit_per_category: Prompts of each category.
        output: Where the threshold and its provenance go.
    """

    grid: tuple[float, ...] = GRID
    prompts: str = "train"
    limit_per_category: int | None = 6
    output: Path = THRESHOLD_FILE


def tune(args: TuneEntropyArgs) -> float:
    """Measures, chooses, writes; returns the threshold in nats.

    Raises:
        DraftgymError: No thresholds, held-out prompts, a missing drafter, bad settings.
    """
    if not args.grid:
        raise DraftgymError("--grid is empty", "give thresholds in nats, such as 0.5 1 2")
    if args.prompts == "heldout":
        raise DraftgymError(
            "the threshold cannot be tuned on held-out prompts", "tune with --prompts train"
        )
    prompts = load_prompts(args.prompts, limit_per_category=args.limit_per_category)
    target, drafters = args.load()
    names = {f"entropy:{threshold:g}": threshold for threshold in args.grid}
    policies = {name: make_policy(name, drafters, target) for name in names}
    dealt = interleave_categories(prompts)
    texts = decode_prompts(target, drafters, policies, dealt, args.settings)
    measured = [
        ThresholdMeasurement(
            names[text.policy], len(text.generation.tokens) - 1, text.generation.decode_seconds
        )
        for text in texts
    ]
    best = tune_threshold(measured)
    speeds = throughputs(measured)
    arms = next(iter(policies.values())).arms
    body = {
        "threshold": best,
        "unit": "nats",
        "rule": f"{arms[0]} above the threshold, {arms[1]} at or below it",
        "tokens_per_second": {f"{key:g}": round(value, 2) for key, value in speeds.items()},
        "autoregressive_share": _shares(texts, names, str(arms[0])),
        "prompts": f"{args.prompts}, {len(prompts)} prompts",
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "drafters": describe_drafters(drafters, find_checkpoints(target, args.drafters)),
        **describe_target(target),
        **describe_host(),
    }
    args.output.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    _print(speeds, body["autoregressive_share"], best, args.output)
    return best


def _shares(
    texts: Sequence[DecodedText], names: Mapping[str, float], autoregressive: str
) -> dict[str, float]:
    """Part of the rounds that the autoregressive arm got, by threshold."""
    shares = {}
    for name, threshold in sorted(names.items(), key=lambda item: item[1]):
        rounds = [r for text in texts if text.policy == name for r in text.generation.rounds]
        hits = sum(str(item.record.arm) == autoregressive for item in rounds)
        shares[f"{threshold:g}"] = round(hits / max(1, len(rounds)), 3)
    return shares


def _print(
    speeds: Mapping[float, float], shares: Mapping[str, Any], best: float, output: Path
) -> None:
    for threshold, speed in speeds.items():
        share = shares[f"{threshold:g}"]
        mark = "  <- best" if threshold == best else ""
        print(f"{threshold:6g} nats: {speed:7.2f} tokens/s, {share:.0%} autoregressive{mark}")
    print(f"written: {output}")


if __name__ == "__main__":
    with exit_on_user_error():
        tune(tyro.cli(TuneEntropyArgs, description=__doc__))
