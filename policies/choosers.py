"""Policies that choose among arms and can be told which: `name`, `name:number`, `name@arm,arm`.

What a user can write of them is taken apart here, and made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from draftgym.decoding.arms import PLAIN, Arm, check_arms, default_arms, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.base import Policy
from draftgym.policies.routers.bandits import TimedBandit, TokenBandit
from draftgym.policies.routers.rules import EntropyPolicy, RandomPolicy
from draftgym.policies.routers.stopping import (
    ConfidencePolicy,
    RocPolicy,
    StoppingPolicy,
    SvipPolicy,
)
from draftgym.policies.routers.survival import SurvivalPolicy

AUTOREGRESSIVE, DIFFUSION = "eagle3", "dflash"
STOPPING: dict[str, tuple[Callable[..., StoppingPolicy], str, str]] = {
    "confidence": (ConfidencePolicy, "the least probability of a token", "confidence:0.4"),
    "roc": (RocPolicy, "the probability that a text begins with", "roc:0.4"),
    "svip": (SvipPolicy, "the most entropy in nats", "svip:0.6"),
}
"""Policies that stop a chain as it is drafted; what their number means, and how it is written."""
STOPPED = 8
"""Tokens of the chain where no arm is named."""
CHOOSERS = ("random", "entropy", "ucb", "ucb-time", "survival", *STOPPING)
"""Policies that choose among arms and can be told which."""


@dataclass(frozen=True)
class ChooserSpec:
    """A policy that chooses among arms, taken apart.

    Attributes:
        text: As it was written, without surrounding blanks.
        name: One of `CHOOSERS`.
        number: What stands behind the colon, or an empty string.
        arms: What stands behind the `@`, or None.
    """

    text: str
    name: str
    number: str
    arms: tuple[Arm, ...] | None

    def read_number(self, meaning: str, example: str) -> float | None:
        """The number; None where there is none.

        Args:
            meaning: What it is, for the error.
            example: How it is written, for the error.

        Raises:
            DraftgymError: Something else stands there.
        """
        try:
            return float(self.number) if self.number else None
        except ValueError:
            raise DraftgymError(
                f"policy {self.text!r} has no number after the colon",
                f"write {meaning}, as in {example}",
            ) from None


def chooser_name(text: str) -> str:
    """The name in front of `:` and `@`."""
    return text.strip().partition("@")[0].partition(":")[0]


def parse_chooser(text: str, drafters: Mapping[str, Drafter], trees: bool = True) -> ChooserSpec:
    """Takes the text of a chooser apart.

    Args:
        text: As it was written.
        drafters: The loaded drafters.
        trees: Whether the target verifies trees.

    Raises:
        DraftgymError: The list of arms is empty, repeats one, or names one that cannot be served.
    """
    text = text.strip()
    head, at, listed = text.partition("@")
    name, _, number = head.partition(":")
    arms = _parse_arms(text, listed) if at else None
    check_arms(arms or (), drafters, trees)
    return ChooserSpec(text, name, number, arms)


def _parse_arms(text: str, listed: str) -> tuple[Arm, ...]:
    parts = [part.strip() for part in listed.split(",")]
    if not all(parts):
        raise DraftgymError(
            f"policy {text!r} lists an empty arm",
            "write arms with commas between them, as in random@eagle3:2,ngram:8,plain",
        )
    arms = tuple(map(parse_arm, parts))
    if len(set(arms)) < len(arms):
        raise DraftgymError(f"policy {text!r} lists an arm twice", "name every arm once")
    return arms


def make_chooser(
    spec: ChooserSpec,
    drafters: Mapping[str, Drafter],
    seed: int,
    cost_model: Callable[[Sequence[Arm]], CostModel] | None,
) -> Policy:
    """Makes a policy; arguments and errors as `draftgym.policies.registry.make_policy`."""
    if spec.name == "entropy":
        return _entropy(spec, drafters)
    if spec.name in STOPPING:
        return _stopping(spec, drafters)
    arms = spec.arms or default_arms(drafters)
    if spec.name == "random":
        return RandomPolicy(arms, seed, spec.text)
    if spec.name == "survival":
        price = spec.read_number("the tokens a second", "survival:40@eagle3:3x6~0.03,eagle3:3x6")
        return SurvivalPolicy(arms, _costs(spec, arms, cost_model), price, spec.text)
    number = spec.read_number("the factor of the bonus", f"{spec.name}:0.5")
    exploration = 1.0 if number is None else number
    if spec.name == "ucb":
        return TokenBandit(arms, exploration, spec.text)
    return TimedBandit(arms, _costs(spec, arms, cost_model), exploration, spec.text)


def _costs(
    spec: ChooserSpec,
    arms: Sequence[Arm],
    cost_model: Callable[[Sequence[Arm]], CostModel] | None,
) -> CostModel:
    if cost_model is None:
        raise DraftgymError(
            f"policy {spec.text!r} needs to know what rounds cost",
            "pass make_policy a cost model, or use ucb",
        )
    return cost_model(arms)


def _entropy(spec: ChooserSpec, drafters: Mapping[str, Drafter]) -> EntropyPolicy:
    if spec.arms is None and not has_both_paradigms(drafters):
        raise DraftgymError(
            f"policy {spec.text!r} chooses between {AUTOREGRESSIVE} and {DIFFUSION}, "
            f"loaded drafters: {', '.join(drafters) or 'none'}",
            f"give both with --drafters, or use one of {', '.join([PLAIN, *drafters])}",
        )
    defaults = (AUTOREGRESSIVE, DIFFUSION)
    arms = spec.arms or default_arms({name: drafters[name] for name in defaults})
    if len(arms) != 2:
        raise DraftgymError(
            f"policy {spec.text!r} chooses between two arms, not {len(arms)}",
            "name the arm for uncertain positions and the other one, as in "
            "entropy:1.5@eagle3:2,dflash:2",
        )
    nats = spec.read_number("the threshold in nats", "entropy:1.5")
    return EntropyPolicy(*arms, threshold=nats, name=spec.text)


def _stopping(spec: ChooserSpec, drafters: Mapping[str, Drafter]) -> StoppingPolicy:
    first = next((name for name, drafter in drafters.items() if drafter.goes_on), AUTOREGRESSIVE)
    arms = spec.arms or (Arm(first, STOPPED),)
    if len(arms) != 1:
        raise DraftgymError(
            f"policy {spec.text!r} stops a chain of one arm, not of {len(arms)}",
            f"name one, as in {spec.name}@{AUTOREGRESSIVE}:{STOPPED}",
        )
    check_arms(arms, drafters)
    number = spec.read_number(*STOPPING[spec.name][1:])
    given = {} if number is None else {"threshold": number}
    policy = STOPPING[spec.name][0](arms[0], name=spec.text, **given)
    policy.check_drafter(drafters)
    return policy


def has_both_paradigms(drafters: Mapping[str, Drafter]) -> bool:
    """Whether an autoregressive and a block-diffusion drafter are loaded, by their usual names."""
    return AUTOREGRESSIVE in drafters and DIFFUSION in drafters
