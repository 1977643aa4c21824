"""Verification rules by name."""

from __future__ import annotations

import difflib
import math

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.coupled import CoupledRule
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.rejection import RejectionRule
from draftgym.decoding.verify.sampling import PLAIN_SAMPLING, SamplingSettings

RULE_NAMES = ("greedy", "coupled", "rejection")


LEAST_TEMPERATURE = 1e-3
"""The smallest temperature above 0.

Sampling adds noise of the order of 1 to logits / T. Logits of 64 divided by this are 64,000, where
float32 still tells steps of 0.004 apart; at 1e-5 the noise would be rounded to halves, and at 1e-37
logits / T would be infinite. At 1e-3 a logit that is 0.01 behind is taken once in 22,000
draws, so there is nothing below it that 0 does not give.
"""


def check_temperature(temperature: float) -> None:
    """Raises `DraftgymError` for a temperature that texts cannot be sampled at."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise DraftgymError(
            f"temperature {temperature} is not possible",
            f"use 0 (greedy) or a positive number, {LEAST_TEMPERATURE} or more",
        )
    if 0 < temperature < LEAST_TEMPERATURE:
        raise DraftgymError(
            f"temperature {temperature} is too small to sample at (the least is "
            f"{LEAST_TEMPERATURE})",
            "use --temperature 0: it takes the likeliest token, as the limit does",
        )


def make_rule(
    name: str | None,
    temperature: float,
    seed: int,
    vocab_size: int,
    sampling: SamplingSettings = PLAIN_SAMPLING,
) -> VerificationRule:
    """Builds a rule by name.

    Args:
        name: One of `RULE_NAMES`; None is greedy at temperature 0 and coupled above.
        temperature: Sampling temperature: 0, or `LEAST_TEMPERATURE` and above.
        seed: Seed of the text; greedy ignores it.
        vocab_size: Size of the target's vocabulary (width of its logits).
        sampling: What narrows or bends the target's distribution.

    Raises:
        DraftgymError: If the name is unknown or does not go with the temperature.
    """
    rule = _make(name, temperature, seed, vocab_size)
    rule.shaping = sampling.shaping(temperature)
    return rule


def _make(name: str | None, temperature: float, seed: int, vocab_size: int) -> VerificationRule:
    check_temperature(temperature)
    name = name or ("coupled" if temperature else "greedy")
    if name not in RULE_NAMES:
        near = difflib.get_close_matches(name, RULE_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DraftgymError(
            f"unknown verification rule {name!r}", f"{hint}choose from {', '.join(RULE_NAMES)}"
        )
    if name == "greedy":
        if temperature:
            raise DraftgymError(
                f"the greedy rule does not sample, but the temperature is {temperature}",
                "set the temperature to 0, or use the coupled or rejection rule",
            )
        return GreedyRule()
    if not temperature:
        raise DraftgymError(
            f"the {name} rule samples, but the temperature is 0",
            "set a temperature above 0, or use the greedy rule",
        )
    rule = CoupledRule if name == "coupled" else RejectionRule
    return rule(temperature, seed, vocab_size)
