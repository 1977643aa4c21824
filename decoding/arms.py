"""Arms: what a policy chooses from, each a drafter with a draft length or the shape of a tree.

Arms of several drafters are made of these: a cascade (`ngram:8>eagle3:3x6`) takes the first part
that has something to offer, a graft (`eagle3:3x6+ngram:8`) verifies what all parts drafted as one
tree.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from draftgym.decoding.drafting import MAX_TREE_NODES, Drafter, DraftShape, Stop
from draftgym.decoding.errors import DraftgymError

PLAIN = "plain"


@dataclass(frozen=True)
class Arm:
    """One choice of a policy.

    Attributes:
        drafter: Name of the drafter; `plain` drafts nothing.
        length: Most tokens to draft on one path.
        nodes: Most tokens of a tree (the anchor is not counted); None drafts a chain.
        least: Newest tokens that a drafter that looks up must have found elsewhere; with fewer the
            arm drafts nothing.
        sure: Probability that the drafter must give a path, from the anchor on, for it to be
            verified, and for drafting to go on behind it; 0 verifies all that there is. Where
            drafter and target share their noise, it is the chance that they draw alike.
        ask: Asked for `sure` while it drafts, with the score of the likeliest first token.
        stop: Asked after every token of a chain whether it is the last one.
    """

    drafter: str
    length: int
    nodes: int | None = None
    least: int = 0
    sure: float = 0.0
    ask: Callable[[float], float] | None = field(default=None, compare=False)
    stop: Stop | None = field(default=None, compare=False)

    @property
    def shape(self) -> DraftShape:
        """How much the drafter is asked for."""
        return DraftShape(self.length, self.nodes, self.sure, self.ask, self.stop)

    @property
    def drafts(self) -> bool:
        """False for the arm that leaves the round to the target alone."""
        return self.drafter != PLAIN and self.length > 0

    @property
    def parts(self) -> tuple[Arm, ...]:
        """The arms of one drafter that it is made of, in the order in which they are asked."""
        return (self,) if self.drafts else ()

    def cut(self, most: int) -> Arm:
        """The arm that drafts no more than `most` tokens."""
        if self.shape.budget <= most:
            return self
        if most < 1:
            return Arm(PLAIN, 0)
        return replace(
            self, length=min(self.length, most), nodes=None if self.nodes is None else most
        )

    def __str__(self) -> str:
        if not self.drafts:
            return PLAIN
        size = f"{self.length}x{self.nodes}" if self.nodes else f"{self.length}"
        least = f"@{self.least}" if self.least else ""
        sure = f"~{self.sure:g}" if self.sure else ""
        return f"{self.drafter}:{size}{least}{sure}"

    @property
    def whole(self) -> Arm:
        """The arm that verifies all that this one drafts, whatever it must match."""
        if not (self.least or self.sure or self.ask or self.stop):
            return self
        return replace(self, least=0, sure=0.0, ask=None, stop=None)

    def ending_in(self, last: Arm) -> Arm:
        """The arm with another last part."""
        return last


@dataclass(frozen=True)
class JointArm(Arm):
    """An arm of several drafters; made by `of`.

    Attributes:
        members: Its parts.
    """

    members: tuple[Arm, ...] = ()

    @property
    def parts(self) -> tuple[Arm, ...]:
        """Its members."""
        return self.members


class Cascade(JointArm):
    """Its parts are asked in turn until one has something to offer: that is verified alone."""

    sign = ">"

    @classmethod
    def of(cls, parts: Sequence[Arm]) -> Cascade:
        """The cascade of some arms."""
        trees = any(part.nodes for part in parts)
        nodes = max(part.shape.budget for part in parts) if trees else None
        return cls(_names(parts, cls.sign), _longest(parts), nodes, members=(*parts,))

    def ending_in(self, last: Arm) -> Arm:
        """The cascade with another last part."""
        return Cascade.of([*self.members[:-1], last])

    def cut(self, most: int) -> Arm:
        """The cascade of its parts, each cut."""
        return Cascade.of([part.cut(most) for part in self.members]) if most else Arm(PLAIN, 0)

    def __str__(self) -> str:
        return self.sign.join(map(str, self.members))


class Graft(JointArm):
    """All parts are asked; what they draft is verified as one tree, in which they share nodes.

    After Graft (arXiv 2605.20104).
    """

    sign = "+"

    @classmethod
    def of(cls, parts: Sequence[Arm]) -> Graft:
        """The graft of some arms."""
        budget = sum(part.shape.budget for part in parts)
        return cls(_names(parts, cls.sign), _longest(parts), budget, members=(*parts,))

    def cut(self, most: int) -> Arm:
        """A graft of so many of its first parts as `most` tokens are enough for."""
        parts: list[Arm] = []
        for part in self.members:
            left = most - sum(one.shape.budget for one in parts)
            parts += [part.cut(left)] if left > 0 else []
        return Graft.of(parts) if len(parts) > 1 else parts[0] if parts else Arm(PLAIN, 0)

    def __str__(self) -> str:
        return self.sign.join(map(str, self.members))


@dataclass(frozen=True)
class Asking:
    """What asking an arm of one drafter came to.

    Attributes:
        arm: The arm.
        drafted: Tokens that it drafted (an n-gram match may be shorter than its length), those
            included that it was not sure of.
        depth: Tokens on the longest path of what it drafted; a tree that turned out shallow took
            fewer steps, and who is not sure stops behind the first level that nobody verifies.
        caught_up: Positions that the drafter encoded first.
    """

    arm: Arm
    drafted: int
    depth: int
    caught_up: int = 0


def _names(parts: Sequence[Arm], sign: str) -> str:
    return sign.join(part.drafter for part in parts)


def _longest(parts: Sequence[Arm]) -> int:
    return max(part.length for part in parts)


DEFAULT_SHAPES = {
    "eagle3": DraftShape(2),
    "dflash": DraftShape(2),
    "small": DraftShape(2),
    "ngram": DraftShape(8),
    "suffix": DraftShape(16),
}
"""What a drafter's name alone means: of networks short chains, for processors, where verified rows
are dear. `docs/results/drafters.md` has the speed of each shape; where rows are cheap, draw
trees."""


def parse_arm(text: str) -> Arm:
    """Reads an arm as users write it.

    `plain` drafts nothing, `eagle3` its default shape, `eagle3:4` a chain of 4 tokens and
    `eagle3:5x16` a tree of at most 16 tokens, at most 5 deep; `ngram:8@3` copies 8 tokens where 3
    or more agree; of `eagle3:5x16~0.1` paths are verified that the drafter gives a probability of
    0.1 or more. `>` between two or more of them makes a cascade, `+` a graft.

    Raises:
        DraftgymError: A number is missing or not positive, the tree has fewer nodes than levels, or
            parts of several drafters do not go together.
    """
    for kind in (Cascade, Graft):
        if kind.sign in text:
            return _parse_joint(text.strip(), kind)
    return _parse_single(text)


def _parse_joint(text: str, kind: type[Cascade | Graft]) -> Arm:
    """A cascade or a graft."""
    written = [part.strip() for part in text.split(kind.sign)]
    example = "write arms of different drafters, as in ngram:8>eagle3:3x6 or eagle3:3x6+ngram:8"
    if not all(written) or (Graft.sign in text and Cascade.sign in text):
        raise DraftgymError(f"arm {text!r} is no cascade and no graft", example)
    parts = [_parse_single(part) for part in written]
    if not all(part.drafts for part in parts):
        raise DraftgymError(f"arm {text!r} has a part that drafts nothing", example)
    if len({part.drafter for part in parts}) < len(parts):
        raise DraftgymError(f"arm {text!r} asks a drafter twice", example)
    arm = kind.of(parts)
    if isinstance(arm, Graft) and arm.shape.budget > MAX_TREE_NODES:
        raise DraftgymError(
            f"arm {text!r} is a tree of up to {arm.shape.budget} nodes",
            f"let its parts draft {MAX_TREE_NODES} tokens together, or fewer",
        )
    return arm


def _parse_single(text: str) -> Arm:
    """An arm of one drafter."""
    most, tilde, sure = text.strip().partition("~")
    whole, at, least = most.partition("@")
    name, _, size = whole.partition(":")
    if at and not _is_count(least):
        raise DraftgymError(
            f"arm {text!r} has match length {least!r}", "write a positive number, as in ngram:8@3"
        )
    if tilde and not _is_probability(sure):
        raise DraftgymError(
            f"arm {text!r} has path probability {sure!r}",
            "write a number above 0 and below 1, as in eagle3:3x6~0.1",
        )
    if name == PLAIN:
        return Arm(PLAIN, 0)
    arm = _sized(whole, name, size) if size else _default_arm(name)
    return replace(arm, least=int(least or 0), sure=float(sure or 0))


def _sized(text: str, name: str, size: str) -> Arm:
    length, cross, nodes = size.partition("x")
    if not _is_count(length):
        raise DraftgymError(
            f"arm {text!r} has draft length {length!r}", "write a positive number, as in eagle3:4"
        )
    if not cross:
        return Arm(name, int(length))
    if not _is_count(nodes):
        raise DraftgymError(
            f"arm {text!r} has node budget {nodes!r}",
            "write depth x nodes, both positive, as in eagle3:5x16",
        )
    if int(nodes) < int(length):
        raise DraftgymError(
            f"arm {text!r} is a tree of {int(nodes)} nodes, which cannot be {int(length)} deep",
            f"give it {int(length)} nodes or more, or write {name}:{int(nodes)}x{int(nodes)}",
        )
    return Arm(name, int(length), int(nodes))


def single_arms(arms: Iterable[Arm]) -> list[Arm]:
    """What these arms are made of: each `whole` arm of one drafter once."""
    return list(dict.fromkeys(part.whole for arm in arms for part in arm.parts))


def _default_arm(name: str, longest: int | None = None) -> Arm:
    shape = DEFAULT_SHAPES.get(name, DraftShape(4))
    shape = shape if longest is None else shape.cut(longest)
    return Arm(name, shape.depth, shape.nodes)


def _is_probability(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def _is_count(text: str) -> bool:
    return text.isdecimal() and int(text) >= 1


def check_arms(arms: Iterable[Arm], drafters: Mapping[str, Drafter], trees: bool = True) -> None:
    """Raises `DraftgymError` for an arm that no loaded drafter can serve.

    Args:
        arms: The arms.
        drafters: The loaded drafters.
        trees: Whether the target verifies trees.
    """
    arms = list(arms)
    for arm in (part for one in arms for part in one.parts):
        drafter = drafters.get(arm.drafter)
        if drafter is None:
            close = difflib.get_close_matches(arm.drafter, drafters, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DraftgymError(
                f"arm {str(arm)!r} names an unknown drafter",
                f"{hint}loaded drafters: {', '.join(drafters) or 'none'}",
            )
        if arm.length > drafter.max_draft_length:
            raise DraftgymError(
                f"arm {str(arm)!r} drafts more than {arm.drafter} can",
                f"use a length of at most {drafter.max_draft_length}",
            )
        if arm.least and not drafter.looks_up:
            raise DraftgymError(
                f"arm {str(arm)!r} names a match length, but {arm.drafter} matches nothing",
                f"write {replace(arm, least=0)}; prompt lookup has one, as in ngram:8@3",
            )
        if arm.nodes is not None:
            _check_tree(arm, arm.nodes, drafter, trees)
    grafts = [arm for arm in arms if isinstance(arm, Graft)]
    if grafts and not trees:
        raise DraftgymError(
            f"arm {str(grafts[0])!r} makes a tree, but the target verifies chains only",
            f"write {Cascade.of(grafts[0].parts)}, which verifies one of them",
        )


def _check_tree(arm: Arm, nodes: int, drafter: Drafter, trees: bool) -> None:
    if not (trees and drafter.max_tree_nodes):
        why = f"{arm.drafter} drafts chains only" if trees else "the target verifies chains only"
        raise DraftgymError(
            f"arm {str(arm)!r} asks for a tree, but {why}", f"write {arm.drafter}:{arm.length}"
        )
    if nodes > drafter.max_tree_nodes:
        raise DraftgymError(
            f"arm {str(arm)!r} has more nodes than {arm.drafter} can draft",
            f"use at most {drafter.max_tree_nodes} nodes",
        )


def default_arms(drafters: Mapping[str, Drafter]) -> tuple[Arm, ...]:
    """One arm per loaded drafter, in its default shape."""
    return tuple(_default_arm(name, drafter.max_draft_length) for name, drafter in drafters.items())
