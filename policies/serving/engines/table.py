"""Draft lengths of one drafter by the number of requests in the batch: what every engine takes.

A policy chooses for each request, each round, and may choose who drafts; a table knows the size of
the batch alone. What that loses is measured where both are played (`draftgym.envs.serving.kept`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from draftgym.decoding.arms import PLAIN, Arm, Cascade
from draftgym.decoding.drafting import LOOKUPS
from draftgym.decoding.errors import DraftgymError
from draftgym.policies.serving.by_size import LengthBySize
from draftgym.policies.serving.rule import Ladder

MATCHER = "suffix"
"""Whose drafts stand for those of an engine that looks up before its network drafts."""


@dataclass(frozen=True)
class LengthTable:
    """A draft length for every size of the batch up to the largest.

    Attributes:
        drafter: Who drafts.
        schedule: Length by the largest size that it is for, ascending; neighbours of the same
            length are put together.
        match: Newest tokens that must agree with earlier ones for a copy of what followed there, as
            long as the draft would be, to be verified instead; None where nobody looks up.

    Raises:
        DraftgymError: No size, sizes that do not ascend from 1 on, a length below 0, or a drafter
            that looks up and is to be asked after another one.
    """

    drafter: str
    schedule: Mapping[int, int]
    match: int | None = None

    def __post_init__(self) -> None:
        sizes, lengths = list(self.schedule), list(self.schedule.values())
        if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 1 or min(lengths) < 0:
            raise DraftgymError(
                f"a table of {dict(self.schedule)}",
                "give lengths from 0 on by ascending sizes from 1 on",
            )
        if self.match is not None and (self.match < 1 or self.drafter in LOOKUPS):
            raise DraftgymError(
                f"{self.drafter} behind a lookup that matches {self.match} tokens",
                "give 1 or more, and a drafter that has a network",
            )
        following = [*lengths[1:], None]
        pairs = zip(sizes, lengths, following, strict=True)
        merged = {size: length for size, length, after in pairs if length != after}
        object.__setattr__(self, "schedule", merged)

    @property
    def longest(self) -> int:
        """Its longest draft."""
        return max(self.schedule.values())

    @property
    def most(self) -> int:
        """The largest size that it knows."""
        return max(self.schedule)

    @property
    def ranges(self) -> list[tuple[int, int, int]]:
        """First size, last size and length of each entry."""
        first, found = 1, []
        for last, length in self.schedule.items():
            found.append((first, last, length))
            first = last + 1
        return found

    def cut(self) -> LengthTable:
        """The table without lengths beyond the first one."""
        first = next(iter(self.schedule.values()))
        lengths = {size: min(length, first) for size, length in self.schedule.items()}
        return LengthTable(self.drafter, lengths, self.match)

    def rule(self) -> LengthBySize:
        """It as a rule that can be played."""
        ladder = ladder_of(self.drafter, self.schedule.values(), self.match)
        return LengthBySize(ladder, self.schedule, "table")

    def drafts(self, engine: str) -> LengthTable:
        """Itself.

        Raises:
            DraftgymError: It never drafts, which is said to `engine` by leaving speculation off.
        """
        if self.longest:
            return self
        raise DraftgymError(
            f"at every size up to {self.most} drafting does not pay here",
            f"start {engine} without speculation",
        )


@dataclass(frozen=True)
class Export:
    """What an engine is told.

    Attributes:
        text: What the file holds.
        table: What the engine does with it, which may be less than was asked for; None where it
            plays the very rule that is exported.
        command: How the engine is started with a file of this name, which stands in it as `{file}`.
        notes: What else is to be known.
    """

    text: str
    table: LengthTable | None
    command: str
    notes: tuple[str, ...] = ()

    def played(self) -> LengthBySize:
        """The table as a rule that can be played."""
        assert self.table is not None
        return self.table.rule()


def ladder_of(drafter: str, lengths: Iterable[int], match: int | None = None) -> Ladder:
    """An arm for every length of a table; 0 drafts nothing, also behind a lookup.

    Args:
        drafter: Whose chains.
        lengths: Tokens of each; 0 is added.
        match: See `LengthTable`.
    """
    chains = Ladder.of(drafter, lengths)
    if match is None:
        return chains
    behind: dict[int, Arm] = {0: Arm(PLAIN, 0)}
    for length, chain in list(chains.arms.items())[1:]:
        behind[length] = Cascade.of([Arm(MATCHER, length, least=match), chain])
    return Ladder(drafter, behind)


def method_of(engine: str, known: Mapping[str, str], drafter: str, given: str | None) -> str:
    """How an engine calls a drafter.

    Args:
        engine: Its name.
        known: Its name of each of our drafters.
        drafter: Ours.
        given: What the user says it is called; None goes by the drafter's name.

    Raises:
        DraftgymError: Nobody knows, or the engine has nothing of this name.
    """
    names = ", ".join(dict.fromkeys(known.values()))
    if given is not None and given not in known.values():
        raise DraftgymError(f"{engine} is not told of a method {given!r} here", f"use {names}")
    if given is None and drafter not in known:
        raise DraftgymError(
            f"{engine} has no drafter called {drafter!r}", f"say what it is with --method: {names}"
        )
    return given or known[drafter]


def without_lookup(engine: str, table: LengthTable) -> LengthTable:
    """The table, which must have no lookup in front.

    Raises:
        DraftgymError: It has one.
    """
    if table.match is None:
        return table
    raise DraftgymError(
        f"{engine} cannot ask a lookup before {table.drafter}",
        "leave --match out; of these engines TensorRT-LLM alone can",
    )
