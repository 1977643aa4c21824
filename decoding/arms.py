"""Arms: what a policy chooses from, each a drafter with a draft length or the shape of a tree."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from draftgym.decoding.drafting import Drafter, DraftShape
from draftgym.decoding.errors import DraftgymError

PLAIN = "plain"


@dataclass(frozen=True)
class Arm:
    """One choice of a policy.

    Attributes:
        drafter: Name of the drafter; `plain` drafts nothing.
        length: Most tokens to draft on one path.
        nodes: Most tokens of a tree (the anchor is not counted); None drafts a chain.
    """

    drafter: str
    length: int
    nodes: int | None = None

    @property
    def shape(self) -> DraftShape:
        """How much the drafter is asked for."""
        return DraftShape(self.length, self.nodes)

    @property
    def drafts(self) -> bool:
        """False for the arm that leaves the round to the target alone."""
        return self.drafter != PLAIN and self.length > 0

    def __str__(self) -> str:
        if not self.drafts:
            return PLAIN
        return f"{self.drafter}:{self.length}" + (f"x{self.nodes}" if self.nodes else "")


DEFAULT_SHAPES = {
    "eagle3": DraftShape(2),
    "dflash": DraftShape(2),
    "small": DraftShape(2),
    "ngram": DraftShape(8),
    "suffix": DraftShape(16),
}
"""What a drafter's name alone means: the fastest arm of each on traces of training prompts, in
float32 on a CPU, where every verified row is dear. Where rows are cheap, trees should be faster."""


def parse_arm(text: str) -> Arm:
    """Reads an arm as users write it.

    `plain` drafts nothing, `eagle3` its default shape, `eagle3:4` a chain of 4 tokens and
    `eagle3:5x16` a tree of at most 16 tokens, at most 5 deep.

    Raises:
        DraftgymError: A number is missing or not positive, or the tree has fewer nodes than levels.
    """
    name, _, size = text.strip().partition(":")
    if name == PLAIN:
        return Arm(PLAIN, 0)
    if not size:
        return _default_arm(name)
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


def _default_arm(name: str, longest: int | None = None) -> Arm:
    shape = DEFAULT_SHAPES.get(name, DraftShape(4))
    shape = shape if longest is None else shape.cut(longest)
    return Arm(name, shape.depth, shape.nodes)


def _is_count(text: str) -> bool:
    return text.isdecimal() and int(text) >= 1


def check_arms(arms: Iterable[Arm], drafters: Mapping[str, Drafter], trees: bool = True) -> None:
    """Raises `DraftgymError` for an arm that no loaded drafter can serve.

    Args:
        arms: The arms.
        drafters: The loaded drafters.
        trees: Whether the target verifies trees.
    """
    for arm in arms:
        if not arm.drafts:
            continue
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
        if arm.nodes is not None:
            _check_tree(arm, arm.nodes, drafter, trees)


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
