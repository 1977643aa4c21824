"""What Lazy Catch-up and KV-only Prefill save in decoding (WhiFlash): policies that switch.

    $ python -m benchmarks.system.catch_up --dtype float32 --json runs/catch_up.json
    $ python -m benchmarks.system.catch_up --per-category 1 --max-new-tokens 48

Two policies switch between the same arms, one in bursts of rounds and one at random, in four
variants: drafters catch up lazily (only the chosen one, before it drafts) or eagerly (all of them,
after every round), and encode keys and values alone (`kv`) or run the whole drafter (`full`).
Tokens per second of decoding; ratios of totals, and medians of single prompts' ratios, with 95 %
intervals from a paired bootstrap over prompts. Texts must be identical.
`benchmarks.system.switch_cost` measures a single switch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.report import Json, Table, interval, number
from benchmarks.results import PromptOptions, Result, check, finish
from draftgym.decoding.arms import Arm, check_arms, parse_arm
from draftgym.decoding.decoder import Generation, RoutingPolicy, SpeculativeDecoder
from draftgym.decoding.drafting import CatchUp, Drafter
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.target import Target
from draftgym.policies.base import Policy
from draftgym.policies.routers.rules import RandomPolicy
from draftgym.rollouts.decode.fitting import FittedPrompts
from draftgym.rollouts.decode.interleaved import (
    WARM_UP_TOKENS,
    DecodedText,
    DecodeSettings,
    turn_order,
    write,
)
from draftgym.rollouts.report.stalls import Stall, find_stalls, stalls_told
from draftgym.rollouts.report.statistics import Work, median_ratio, speed_ratio

VARIANTS = {
    "eager full": CatchUp(eager=True, full=True),
    "eager kv": CatchUp(eager=True),
    "lazy full": CatchUp(full=True),
    "lazy kv": CatchUp(),
}
"""From neither of the two savings to both."""

COMPARISONS = (
    ("lazy kv", "eager kv"),
    ("lazy full", "eager full"),
    ("lazy kv", "lazy full"),
    ("eager kv", "eager full"),
    ("lazy kv", "eager full"),
)
"""Who is compared with whom."""


@dataclass(frozen=True, kw_only=True)
class CatchUpArgs(PromptOptions):
    """What to decode.

    Attributes:
        between: Arms that the policies switch between; at least two.
        burst: Mean rounds that a burst stays with an arm.
        temperature: 0 for greedy; above 0 with coupled noise.
        seed: Seed of policies and sampling noise.
        dtype: auto, float32 (texts must then be identical), bfloat16 or float16.
        json: Write the figures to this file.
    """

    per_category: int = 3
    max_new_tokens: int = 128
    between: tuple[str, ...] = ("eagle3:2", "dflash:2")
    burst: int = 16
    temperature: float = 0.0
    seed: int = 0
    dtype: str = "auto"
    json: Path | None = None


def measure(args: CatchUpArgs) -> Result:
    """Decodes, shows and writes the figures.

    Raises:
        DraftgymError: Bad settings.
    """
    check(args, "burst", "max_new_tokens", "per_category")
    if len(set(args.between)) < 2:
        raise DraftgymError("--between names fewer than two arms", "name two arms or more")
    prompts = args.load_prompts()
    target, drafters = args.load(args.dtype)
    arms = [*dict.fromkeys(map(parse_arm, args.between))]
    check_arms(arms, drafters)
    settings = DecodeSettings(args.max_new_tokens, args.temperature, args.seed)
    fitted = args.fit(target, prompts)
    results = decode_variants(target, drafters, arms, args.burst, fitted, settings)
    texts = [
        DecodedText(prompt, f"{kind} {variant}", text)
        for kind, variants in results.items()
        for variant, written in variants.items()
        for prompt, text in zip(fitted.prompts, written, strict=True)
    ]
    stalls = [asdict(one) for one in find_stalls(texts)]
    figures = {"decoding": summarise(results), "stalls": stalls}
    return finish(tables, args, figures, target, drafters, fitted.describe())


class BurstPolicy(Policy):
    """Stays with an arm for some rounds, then goes on to the next one, in a circle.

    Bursts have 1 to `2 * rounds - 1` rounds, drawn uniformly, and go on from text to text, so that
    switches fall on no particular place. Two policies built alike make the same choices.

    Args:
        arms: What to switch between.
        rounds: Mean length of a burst.
        seed: Seed of the lengths.
    """

    observes = False

    def __init__(self, arms: Sequence[Arm], rounds: int, seed: int = 0) -> None:
        self.name = "bursts"
        self.arms = tuple(arms)
        self._rounds = rounds
        self._generator = np.random.default_rng(seed)
        self._action, self._left = 0, self._length()

    def choose(
        self, observation: Mapping[str, NDArray[np.float32]], count: int, deterministic: bool
    ) -> NDArray[np.int64]:
        """The arm of the current burst, of which this is one more round."""
        if self._left == 0:
            self._action, self._left = (self._action + 1) % len(self.arms), self._length()
        self._left -= 1
        return np.full(count, self._action, dtype=np.int64)

    def _length(self) -> int:
        return int(self._generator.integers(1, 2 * self._rounds))


Results = dict[str, dict[str, list[Generation]]]
"""What each policy wrote in each variant, prompt by prompt."""


def decode_variants(
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    burst: int,
    fitted: FittedPrompts,
    settings: DecodeSettings,
) -> Results:
    """Writes every prompt with every policy in every variant, interleaved prompt by prompt.

    Args:
        target: The target.
        drafters: Drafters by name.
        arms: Arms to switch between.
        burst: Mean rounds between two switches of `BurstPolicy`.
        fitted: What to write about.
        settings: How; `seed` also seeds the policies.
    """
    kinds: dict[str, Callable[[], RoutingPolicy]] = {
        "bursts": lambda: BurstPolicy(arms, burst, settings.seed),
        "random": lambda: RandomPolicy(arms, settings.seed),
    }
    # Every variant has a die of its own: they fall alike, so that all variants play the same rounds
    decoders = {
        (kind, variant): SpeculativeDecoder(target, drafters, make())
        for kind, make in kinds.items()
        for variant in VARIANTS
    }
    results: Results = {kind: {name: [] for name in VARIANTS} for kind in kinds}
    names = {f"{kind} {variant}": (kind, variant) for kind, variant in decoders}
    few = replace(settings, max_new_tokens=min(WARM_UP_TOKENS, settings.max_new_tokens))
    for (_, variant), decoder in decoders.items():
        write(decoder, fitted.pairs[0][1], replace(few, catching_up=VARIANTS[variant]))
    for turn, (prompt, ids) in enumerate(tqdm(fitted.pairs, desc="prompts", unit="prompt")):
        for name in turn_order(list(names), turn):
            kind, variant = names[name]
            how = replace(settings.of(prompt), catching_up=VARIANTS[variant])
            results[kind][variant].append(write(decoders[kind, variant], ids, how))
    return results


def mean_backlog(lazy: Sequence[Generation]) -> float:
    """Positions that a drafter encodes when it takes over from another one within a text."""
    switches = [
        now.record.caught_up
        for text in lazy
        for before, now in pairwise(text.rounds)
        if now.record.drafted and now.record.arm != before.record.arm
    ]
    return float(np.mean(switches)) if switches else 0.0


def summarise(results: Results) -> Result:
    """Speeds and ratios per policy."""
    return {kind: _summarise_policy(variants) for kind, variants in results.items()}


def _summarise_policy(variants: Mapping[str, Sequence[Generation]]) -> Result:
    tokens = [[text.tokens for text in texts] for texts in variants.values()]
    same = [all(row == rows[0] for row in rows) for rows in zip(*tokens, strict=True)]
    works = {name: list(map(_work, texts)) for name, texts in variants.items()}
    pairs = {f"{mine} / {other}": (works[mine], works[other]) for mine, other in COMPARISONS}
    return {
        "variants": {name: _speed(texts) for name, texts in variants.items()},
        "ratios": {name: asdict(speed_ratio(*pair)) for name, pair in pairs.items()},
        "median_ratios": {name: asdict(median_ratio(*pair)) for name, pair in pairs.items()},
        "mean_backlog_at_a_switch": mean_backlog(variants["lazy kv"]),
        "prompts": len(same),
        "identical_texts": sum(same),
    }


def _speed(texts: Sequence[Generation]) -> Result:
    """Speed of a variant, and what catching up took."""
    works, records = map(_work, texts), [item.record for text in texts for item in text.rounds]
    tokens, seconds = (sum(column) for column in zip(*map(astuple, works), strict=True))
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "rounds": len(records),
        "encoded_positions": sum(record.caught_up for record in records),
        "catch_up_share": sum(record.times.catch_up for record in records) / seconds,
    }


def _work(text: Generation) -> Work:
    """Tokens and seconds of decoding; the first token belongs to the prompt."""
    return Work(len(text.tokens) - 1, text.decode_seconds)


def tables(result: Json) -> list[Table]:
    """Speeds per policy and variant, then the ratios."""
    columns = {
        "catching up": number("name", ""),
        "tokens/s": number("tokens_per_second", ".1f"),
        "rounds": number("rounds", ""),
        "encoded positions": number("encoded_positions", ""),
        "catch-up, share of time": number("catch_up_share", ".1%"),
    }
    made, told = [], stalls_told([Stall(**one) for one in result.get("stalls", [])])
    for policy, one in result["decoding"].items():
        note = (
            f"{one['mean_backlog_at_a_switch']:.1f} positions to catch up at a switch; "
            f"identical texts {one['identical_texts']}/{one['prompts']}"
        )
        rows = [{"name": name, **row} for name, row in one["variants"].items()]
        made.append(Table.of(f"decoding with switches: {policy}", rows, columns, notes=[note]))
        ratios = [
            [name, interval(ratio), interval(one.get("median_ratios", {}).get(name))]
            for name, ratio in one["ratios"].items()
        ]
        head = ["variants", "times, by totals", "median of prompts"]
        made.append(Table(f"{policy}: ratios of speed", head, ratios, notes=told))
    return made


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(CatchUpArgs, description=__doc__))
