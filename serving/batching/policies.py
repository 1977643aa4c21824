"""Policies of a batch: what chooses for one text, asked for many; tables; lookup before policies.

Beside what `draftgym.policies.registry.make_policy` reads:

by-batch@1=eagle3:3x6,5=ngram:8,17=plain      ngram:16>router
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from draftgym.decoding.arms import PLAIN, Arm, check_arms, parse_arm
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import RouterObserver, observe_together
from draftgym.decoding.observers.two_stage import observer_of
from draftgym.decoding.round import RoundRecord, draft
from draftgym.policies.base import Policy
from draftgym.policies.choosers import CHOOSERS, chooser_name
from draftgym.policies.registry import make_policy
from draftgym.policies.serving.stored import CostsOf
from draftgym.serving.batching.choosing import BatchPolicy, Writing, standing_for
from draftgym.serving.planning.folders import holds_batches, load_for_batch

BY_BATCH, EXAMPLE = "by-batch", "by-batch@1=eagle3:3x6,5=ngram:8,17=plain"
BEFORE = ">"
OBSERVER = "observer"


def make_batch_policy(
    spec: str | Path,
    drafters: Mapping[str, Drafter],
    target: Target,
    seed: int = 0,
    cost_model: Callable[[Sequence[Arm]], CostModel] | None = None,
    server_costs: CostsOf | None = None,
) -> BatchPolicy:
    """Builds a policy of a batch.

    Args:
        spec: What `make_policy` reads; the folder of a policy for batches; or
            `by-batch@1=eagle3:3x6,5=ngram:8,17=plain`, arms by the number of texts in the batch,
            each from its number on; or `ngram:8>SPEC`, an arm that looks up where it has something
            to offer, else what the policy `SPEC` chooses.
        drafters: Loaded drafters by name.
        target: The target.
        seed: Seed of `random`.
        cost_model: Loads what rounds with some arms cost; asked only by `ucb-time` and `survival`.
        server_costs: What rounds of a batch cost; asked only by folders that plan with it.

    Raises:
        DraftgymError: It is no such policy, or names a drafter that is not loaded.
    """
    text = str(spec).strip() if isinstance(spec, str | Path) else PLAIN  # refused below
    if not text:
        raise DraftgymError(
            "a policy has an empty name", "name one, as in eagle3:3 or ngram:8>router"
        )
    if text.partition("@")[0] == BY_BATCH:
        return BySize(text, _parse_table(text, drafters, target))
    if holds_batches(text):
        return load_for_batch(text, drafters, target, server_costs)
    if BEFORE in text and not _is_known_alone(text, drafters):
        head, _, rest = text.partition(BEFORE)
        first = _parse_first(text, head.strip(), drafters, target)
        inner = make_batch_policy(rest, drafters, target, seed, cost_model, server_costs)
        return LookupFirst(text, first, inner)
    return EachText(make_policy(spec, drafters, target, seed, cost_model))


class EachText:
    """A policy of single texts, asked for all of its texts at once; the batch has no say.

    A policy that observes is told of every round by the arm that drafted (`standing_for`); where
    there is none, it learns what was committed, as by no arm.

    Args:
        policy: The policy; deterministic where it can be.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name = policy.name
        self.arms = tuple(policy.arms)
        self._follows = policy.observes or policy.watches

    def choose(self, mine: Sequence[Writing], batch: Sequence[Writing]) -> list[Arm]:
        """What the policy chooses for each text by itself."""
        if not self._follows:
            return [self.arms[action] for action in self.policy.choose({}, len(mine), True)]
        observers = [self._observer(text) for text in mine]
        sessions = [text.session for text in mine]
        observation = observe_together(observers, sessions) if self.policy.observes else {}
        actions = self.policy.choose(observation, len(mine), True).tolist()
        pairs = zip(observers, actions, strict=True)
        return [observer.arm(self.policy, action) for observer, action in pairs]

    def learn(self, text: Writing, arm: Arm, record: RoundRecord) -> None:
        """Keeps the round for the text's next observation."""
        if self._follows:
            action = standing_for(self.arms, arm, record.arm)
            self._observer(text).update(action, record)

    def _observer(self, text: Writing) -> RouterObserver:
        if OBSERVER not in text.memory:
            text.memory[OBSERVER] = observer_of(self.policy)
        observer: RouterObserver = text.memory[OBSERVER]
        return observer


class BySize:
    """An arm for all, by how many texts are verified in the pass.

    Args:
        name: How requests call it.
        table: From how many texts on each arm is taken, ascending from 1.
    """

    def __init__(self, name: str, table: Mapping[int, Arm]) -> None:
        self.name = name
        self.arms = tuple(dict.fromkeys(table.values()))
        self._sizes, self._arms = list(table), list(table.values())

    def choose(self, mine: Sequence[Writing], batch: Sequence[Writing]) -> list[Arm]:
        """The arm of the table's last line that the batch reaches."""
        return [self._arms[bisect_right(self._sizes, len(batch)) - 1]] * len(mine)

    def learn(self, text: Writing, arm: Arm, record: RoundRecord) -> None:
        """Nothing: the table is fixed."""


class LookupFirst:
    """Prompt lookup where it has something to offer, else another policy.

    Before an arm of other drafters it would be a cascade, which is an arm itself.

    Whether it has is asked by letting it propose, which costs next to nothing. The other policy
    chooses for the rest of the texts alone, and is told of all rounds.

    Args:
        name: How requests call it.
        first: An arm of prompt lookup.
        inner: Who chooses where that offers nothing.
    """

    def __init__(self, name: str, first: Arm, inner: BatchPolicy) -> None:
        self.name, self.first, self.inner = name, first, inner
        self.arms = tuple(dict.fromkeys([first, *inner.arms]))

    def choose(self, mine: Sequence[Writing], batch: Sequence[Writing]) -> list[Arm]:
        """The first arm for texts that repeat themselves, the inner policy's for the others."""
        others = [text for text in mine if not self._offers(text)]
        chosen = iter(self.inner.choose(others, batch) if others else [])
        left = {id(text) for text in others}
        return [next(chosen) if id(text) in left else self.first for text in mine]

    def learn(self, text: Writing, arm: Arm, record: RoundRecord) -> None:
        """Tells the inner policy, whoever chose."""
        self.inner.learn(text, arm, record)

    def _offers(self, text: Writing) -> bool:
        return len(draft(text.session, self.first).proposal) > 0


def _parse_table(spec: str, drafters: Mapping[str, Drafter], target: Target) -> dict[int, Arm]:
    """Arms by the number of texts from which on they are taken, ascending."""
    example = f"write it as in {EXAMPLE}"
    lines = [line.partition("=") for line in spec.partition("@")[2].split(",")]
    if not all(size.strip() and arm.strip() for size, _, arm in lines):
        raise DraftgymError(f"policy {spec!r} has a line without a number or an arm", example)
    table = {}
    for size, _, arm in lines:
        if not size.strip().isdecimal() or int(size) < 1:
            raise DraftgymError(
                f"policy {spec!r} has an arm from {size.strip()!r} texts on",
                f"give a number of texts, 1 or more: {example}",
            )
        if int(size) in table:
            raise DraftgymError(f"policy {spec!r} names {int(size)} texts twice", example)
        table[int(size)] = parse_arm(arm)
    if 1 not in table:
        raise DraftgymError(
            f"policy {spec!r} says nothing of batches of fewer than {min(table)} texts",
            f"begin with 1, as in {BY_BATCH}@1={PLAIN},{min(table)}={table[min(table)]}",
        )
    check_arms(table.values(), drafters, target.decoder.draws_trees)
    return dict(sorted(table.items()))


def _is_known_alone(spec: str, drafters: Mapping[str, Drafter]) -> bool:
    """Whether a spec with `>` in it is that of single texts: a cascade, or a chooser among some."""
    words = [re.split("[:@~]", part.strip())[0] for part in spec.split(BEFORE)]
    cascade = set(words) <= drafters.keys() and len(set(words)) == len(words)
    return cascade or chooser_name(spec) in CHOOSERS


def _parse_first(spec: str, head: str, drafters: Mapping[str, Drafter], target: Target) -> Arm:
    """What stands before the first `>`."""
    arm = parse_arm(head)
    drafter = drafters.get(arm.drafter)
    if drafter is None or not drafter.looks_up:
        raise DraftgymError(
            f"policy {spec!r} has {head!r} before {BEFORE!r}, which is no prompt lookup",
            "only that can be asked whether it has something to offer: write ngram:8>eagle3:3x6, "
            f"and load it (loaded drafters: {', '.join(drafters) or 'none'})",
        )
    check_arms([arm], drafters, target.decoder.draws_trees)
    return arm
