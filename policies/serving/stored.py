"""Rules for batches as policy folders: a `policy.json`, for there is no network.

    {"kind": "rule", "rule": {"kind": "by size", "name": "mine", "schedule": {"4": 4, "16": 2},
     "ladder": {"drafter": "eagle3", "arms": {"0": "plain", "2": "eagle3:2", "4": "eagle3:4"}}}}

What rounds cost is the host's, and stands in no folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from draftgym.decoding.arms import Arm, parse_arm
from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.policies.folder import AGAIN, BODY, RULE, PolicyTarget, read_policy, write_body
from draftgym.policies.serving.adaptive import AdaptiveLength, AdaptiveSize
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.goodput import GoodputLength
from draftgym.policies.serving.rule import FixedRule, Ladder, ServingRule

CostsOf = Callable[[Sequence[str]], ServerCosts]
"""Says what rounds cost with some drafters, by their names."""
FIXED, BY_SIZE, ADAPTIVE, GOODPUT = "fixed", "by size", "adaptive", "goodput"


def save_rule(
    rule: ServingRule, target: PolicyTarget, folder: Path, provenance: Mapping[str, Any]
) -> None:
    """Writes a rule's folder.

    Args:
        rule: One of `draftgym.policies.serving`; what it has learned of batches is left out.
        target: Whose texts it was made for.
        folder: Where to.
        provenance: How it was made.

    Raises:
        DraftgymError: A rule of another kind, which this does not know how to write.
    """
    facts = {"rule": {**_describe(rule), "name": rule.name}, "provenance": dict(provenance)}
    write_body(folder, RULE, rule.arms, target.name, target.fingerprint, facts)


def load_rule(
    folder: Path,
    target: PolicyTarget,
    drafters: Sequence[str] | None = None,
    costs: CostsOf | None = None,
) -> ServingRule:
    """Loads what `save_rule` wrote.

    Args:
        folder: The folder.
        target: The target it is for.
        drafters: Drafters of the outcomes that it will be told of, in their order; None for those
            of its own arms.
        costs: What rounds cost; asked only by rules that reckon with it.

    Raises:
        DraftgymError: Not such a folder, damaged, of another target, or costs that are needed and
            not there.
    """
    stored = read_policy(folder, RULE, target, {"rule"})
    names = tuple(drafter_names(stored.arms) if drafters is None else drafters)
    try:
        return _make(dict(stored.body["rule"]), stored.arms, names, costs)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DraftgymError(f"{folder / BODY}: {error!r}", AGAIN) from error


def _describe(rule: ServingRule) -> dict[str, Any]:
    if isinstance(rule, FixedRule):
        return {"kind": FIXED}
    if isinstance(rule, LengthBySize):
        return {"kind": BY_SIZE, "ladder": _ladder(rule.ladder), "schedule": rule.schedule}
    if isinstance(rule, AdaptiveLength):
        sizes = {size: asdict(one) for size, one in rule.sizes.items()}
        return {"kind": ADAPTIVE, "ladder": _ladder(rule.ladder), "sizes": sizes}
    if isinstance(rule, GoodputLength):
        return {"kind": GOODPUT, "ladder": _ladder(rule.ladder)}
    raise DraftgymError(
        f"a {type(rule).__name__} has no folder",
        "save a rule of draftgym.policies.serving, or make yours where it is used",
    )


def _make(
    body: Mapping[str, Any], arms: Sequence[Arm], drafters: tuple[str, ...], costs: CostsOf | None
) -> ServingRule:
    kind, name = body["kind"], str(body["name"])
    if kind == FIXED:
        return FixedRule(arms[0])
    ladder = _read_ladder(body["ladder"])
    if kind == BY_SIZE:
        schedule = {int(size): int(length) for size, length in body["schedule"].items()}
        return LengthBySize(ladder, schedule, name)
    if kind == ADAPTIVE:
        sizes = {int(size): _read_size(one) for size, one in body["sizes"].items()}
        return AdaptiveLength(ladder, drafters, sizes, name)
    if kind == GOODPUT:
        if costs is None:
            raise DraftgymError(
                f"the rule {name!r} reckons with what rounds cost, and nobody told it",
                "name the costs: a file of draftgym measure-host, or published ones by name",
            )
        return GoodputLength(ladder, costs(drafters), name)
    raise ValueError(f"a rule of kind {kind!r}, which this version does not know")


def _ladder(ladder: Ladder) -> dict[str, Any]:
    arms = {length: str(arm) for length, arm in ladder.arms.items()}
    return {"drafter": ladder.drafter, "arms": arms}


def _read_ladder(body: Mapping[str, Any]) -> Ladder:
    arms = {int(length): parse_arm(str(arm)) for length, arm in body["arms"].items()}
    return Ladder(str(body["drafter"]), dict(sorted(arms.items())))


def _read_size(body: Mapping[str, Any]) -> AdaptiveSize:
    return AdaptiveSize(**{**body, "candidates": tuple(map(int, body["candidates"]))})
