"""The table of draft lengths that stands for a policy, and the best one without a policy.

For each size of the batch the policy writes every text once, and the mean is taken of what it lets
the network draft: 0 where it lets nothing, and rounds that a lookup served left out, for an engine
without one plays them otherwise. Of the traced lengths below and above it the faster one is the
table's. So a policy that goes by size alone becomes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from draftgym.decoding.arms import Arm, Graft, parse_arm
from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.observers.observation import drafter_names
from draftgym.envs.load.load import Load, ServedRound
from draftgym.envs.load.requests import Ints
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.serving.identical import TextsInTurn, play_identical
from draftgym.envs.serving.play import Player
from draftgym.envs.serving.tune import SIZES, best_lengths
from draftgym.policies.serving.engines.table import MATCHER, LengthTable, ladder_of
from draftgym.policies.serving.rule import Ladder, ServingRule
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True)
class BatchPolicy:
    """Who chooses for batches.

    Attributes:
        name: How tables call it.
        arms: What its servers offer.
        make: Makes a player for some servers.
        looks: Whether it reads what lookups found, and pays for that.
        rule: It, where it is a rule.
    """

    name: str
    arms: tuple[Arm, ...]
    make: Callable[[Load], Player]
    looks: bool = False
    rule: ServingRule | None = None

    def texts(self, traces: TraceSet, settings: ServerSettings) -> TextsInTurn:
        """Texts as its servers see them."""
        return TextsInTurn(traces, self.arms, replace(settings, look_up=self.looks))


class Watching:
    """Plays as somebody does, and keeps account of what he lets a drafter draft.

    Args:
        player: Him.
        load: The servers.
        drafter: Whose drafts.
    """

    def __init__(self, player: Player, load: Load, drafter: str) -> None:
        self._player = player
        own = [[part.length for part in arm.parts if part.drafter == drafter] for arm in load.arms]
        self._lengths = np.array([sum(lengths) for lengths in own])
        others = [name in LOOKUPS and name != drafter for name in load.drafters]
        self._others = np.flatnonzero(others)
        self._sum, self._rounds = 0, 0

    def choose(self, load: Load) -> Ints:
        """See `draftgym.envs.serving.play.Player`."""
        return self._player.choose(load)

    def learn(self, played: ServedRound) -> None:
        """See `draftgym.envs.serving.play.Player`."""
        self._player.learn(played)
        mine = played.deciding & ~played.verified[..., self._others].any(-1)
        self._sum += int(self._lengths[played.arms[mine]].sum())
        self._rounds += int(mine.sum())

    @property
    def mean(self) -> float:
        """Tokens that it was let draft; 0 where it was never its turn."""
        return self._sum / max(self._rounds, 1)


def distil(
    policy: BatchPolicy,
    traces: TraceSet,
    settings: ServerSettings,
    sizes: Sequence[int],
    match: int | None = None,
) -> LengthTable:
    """The table that stands for a policy.

    Args:
        policy: It.
        traces: Texts that it is watched on; training texts.
        settings: What the servers are made of.
        sizes: Largest batch of each entry, ascending.
        match: See `LengthTable`.

    Raises:
        DraftgymError: The policy has arms that no table can tell of.
    """
    drafter = drafter_of(policy.arms)
    ladder = traced_ladder(traces, drafter, match)
    texts, schedule = policy.texts(traces, settings), dict[int, int]()
    for size in sizes:
        watched: list[Watching] = []

        def watch(load: Load, watched: list[Watching] = watched) -> Player:
            watched.append(Watching(policy.make(load), load, drafter))
            return watched[0]

        play_identical(texts, settings, size, watch)
        around = {length: ladder.arms[length] for length in _around(ladder, watched[0].mean)}
        schedule |= _fastest(traces, settings, Ladder(drafter, around), (size,))
    return LengthTable(drafter, schedule, match)


def tuned(
    traces: TraceSet,
    settings: ServerSettings,
    sizes: Sequence[int],
    drafter: str | None = None,
    match: int | None = None,
) -> LengthTable:
    """The table of the lengths that write most tokens a second.

    Args:
        traces: Training texts.
        settings: What the servers are made of.
        sizes: Largest batch of each entry, ascending.
        drafter: Who drafts; None takes the one network that was traced.
        match: See `LengthTable`.

    Raises:
        DraftgymError: Several networks were traced and nobody says which, or none of this name.
    """
    chains = [arm for arm in map(parse_arm, traces.origin.arms) if arm.nodes is None]
    drafter = drafter or drafter_of(chains)
    ladder = traced_ladder(traces, drafter, match)
    return LengthTable(drafter, _fastest(traces, settings, ladder, sizes), match)


def _around(ladder: Ladder, mean: float) -> set[int]:
    """The lengths next to a mean, below and above; one alone where it is that."""
    lengths = ladder.lengths
    return {
        int(lengths[lengths <= mean].max()),
        int(lengths[np.append(lengths[:-1] >= mean, True)].min()),
    }


def _fastest(
    traces: TraceSet, settings: ServerSettings, ladder: Ladder, sizes: Sequence[int]
) -> dict[int, int]:
    """The length of each size that writes most tokens a second."""
    if len(ladder.arms) == 1:
        return dict.fromkeys(sizes, next(iter(ladder.arms)))
    texts = TextsInTurn(traces, tuple(ladder.arms.values()), replace(settings, look_up=False))
    found = dict[int, int]()
    for size in sizes:
        of = texts, replace(settings, copies=size, look_up=False), ladder, (size,), texts.each
        found |= best_lengths(*of, range(texts.servers))
    return found


def batch_sizes(given: Sequence[int], costs: ServerCosts) -> tuple[int, ...]:
    """The sizes that are asked for, or powers of 2 that rounds can be priced at.

    Raises:
        DraftgymError: They do not ascend from 1 on, or go beyond what was measured.
    """
    most = costs.most_texts
    sizes = tuple(given) or tuple(size for size in SIZES if most is None or size <= most)
    if list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise DraftgymError(f"sizes of {sizes}", "give ascending ones from 1 on")
    if most is not None and sizes[-1] > most:
        raise DraftgymError(
            f"batches of {sizes[-1]}; up to {most} texts were measured",
            "give smaller --sizes, or measure more: draftgym measure-host --users",
        )
    return sizes


def traced_ladder(traces: TraceSet, drafter: str, match: int | None = None) -> Ladder:
    """An arm for every length of a drafter's chains that was traced.

    Raises:
        DraftgymError: None was, or not the copies that stand for a lookup in front.
    """
    chains = [arm for arm in map(parse_arm, traces.origin.arms) if arm.nodes is None]
    lengths = sorted(arm.length for arm in chains if arm.drafter == drafter)
    if not lengths:
        raise DraftgymError(
            f"no chain of {drafter!r} was traced",
            f"name one of {', '.join(drafter_names(chains))}, or trace it",
        )
    ladder = ladder_of(drafter, lengths, match)
    if match is not None:
        copied = {arm.length for arm in chains if arm.drafter == MATCHER}
        missing = [f"{MATCHER}:{one}" for one in lengths if one not in copied]
        if missing:
            raise DraftgymError(
                f"a lookup in front copies as many tokens as {drafter} would draft, and "
                f"{', '.join(missing)} were not traced",
                f"trace with these arms, too: --arms {' '.join([*traces.origin.arms, *missing])}",
            )
    return ladder


def drafter_of(arms: Sequence[Arm]) -> str:
    """Whose lengths a table of some arms tells.

    Raises:
        DraftgymError: Several networks or lookups draft, nobody does, or drafts are no chains.
    """
    for arm in arms:
        told = next((what for is_so, what in _UNTOLD if is_so(arm)), None)
        if told:
            raise DraftgymError(
                f"{arm} {told}, and engines' tables know only lengths of chains",
                "export a policy over chains, as in eagle3:4 or ngram:8@3>eagle3:4",
            )
    names = drafter_names(arms)
    found = [name for name in names if name not in LOOKUPS] or names
    if len(found) == 1:
        return found[0]
    raise DraftgymError(
        f"{', '.join(found) or 'nobody'} drafts, and a table tells the lengths of one drafter",
        "leave out the arms of all but one, or tune a table for one: --drafter, without --policy",
    )


_UNTOLD: tuple[tuple[Callable[[Arm], bool], str], ...] = (
    (lambda arm: isinstance(arm, Graft), "verifies what several drafted"),
    (lambda arm: arm.nodes is not None, "is a tree"),
    (lambda arm: any(part.sure for part in arm.parts), "stops where it is not sure"),
)
"""What no table can tell of."""
