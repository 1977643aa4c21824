"""The contract that every drafter keeps.

A drafter reads committed positions (token ids, target taps) from a `DraftContext` and proposes a
token tree. What it remembers of them lives in a state of its own, which `catch_up` extends to all
committed positions in one batched call. What it computes for drafted tokens is thrown away after
the round, so a proposal depends on the committed prefix alone, never on which drafters worked
before, nor on when and how they caught up (`CatchUp`).

So when a text is known, what a drafter would have proposed at each of its positions can be asked
for as well (`Drafter.propose_at_each`): traces are collected so.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.proposal import Proposal

MAX_TREE_NODES = 64
"""Largest node budget of any drafter; sessions and the cost model reserve and measure up to it."""


LOOKUPS = ("ngram", "suffix")
"""Names of the drafters that look up (`Drafter.looks_up`): they have no network to run."""


@dataclass(frozen=True)
class CatchUp:
    """When drafters encode what they missed, and how much of themselves they run for it.

    The defaults are Lazy Catch-up and KV-only Prefill (WhiFlash section 3.4). The other values
    change no proposal; they exist to measure what these two save.

    Attributes:
        eager: Every drafter of a session catches up after every round, not only the chosen one
            before it drafts.
        full: Missed positions run through all of a drafter, down to its LM head, and everything
            but keys and values is thrown away.
    """

    eager: bool = False
    full: bool = False

    def __str__(self) -> str:
        return f"{'eager' if self.eager else 'lazy'}, {'full' if self.full else 'KV only'}"


LAZY_KV_ONLY = CatchUp()
"""What decoding does unless told otherwise."""


@dataclass(frozen=True, eq=False)
class DraftedToken:
    """The newest token of a chain that is being drafted.

    Attributes:
        depth: Its place in the chain, from 1 on.
        logprob: Log-probability that the drafter gave it, at temperature 1.
        entropy: Of the distribution that it was drawn from, at temperature 1, in nats.
        state: What that distribution was computed from, as far as the next step reads it, float32
            `[d]`; empty where the next step reads the token alone.
    """

    depth: int
    logprob: float
    entropy: float
    state: NDArray[np.float32]


Stop = Callable[[DraftedToken], bool]
"""Says whether a chain ends with this token."""


@dataclass(frozen=True)
class DraftShape:
    """How much to draft after the anchor.

    Attributes:
        depth: Most tokens on one path; for a chain its length.
        nodes: Most tokens in all (the anchor is not counted); None asks for a chain.
        sure: Score of a path (`Proposal.path_scores`), as a probability, below which nobody will
            verify it. A drafter that goes on token by token stops where no path is above; those
            that are below may be left in.
        ask: Asked for another such limit, with the score of the likeliest first token.
        stop: Asked after every token of a chain, where a drafter goes on token by token.
    """

    depth: int
    nodes: int | None = None
    sure: float = 0.0
    ask: Callable[[float], float] | None = field(default=None, compare=False)
    stop: Stop | None = field(default=None, compare=False)

    @property
    def is_tree(self) -> bool:
        """Whether branches are asked for."""
        return self.nodes is not None

    @property
    def budget(self) -> int:
        """Most tokens in all."""
        return self.depth if self.nodes is None else self.nodes

    @property
    def may_stop(self) -> bool:
        """Whether less than all may be enough."""
        return self.sure > 0 or self.ask is not None

    def stops_at(self, score: float) -> bool:
        """Whether nobody verifies what comes behind the best path of a level, by its score."""
        sure = self.sure if self.ask is None else max(self.sure, self.ask(score))
        return sure > 0 and score < math.log(sure)

    def cut(self, depth: int) -> DraftShape:
        """The same shape, at most `depth` deep."""
        return self if depth >= self.depth else replace(self, depth=depth)


@dataclass(frozen=True)
class Place:
    """A position of a text to draft at.

    Attributes:
        length: Committed tokens there; the last of them is the anchor.
        room: Most tokens on one path.
    """

    length: int
    room: int


class DraftContext(Protocol):
    """What a drafter may see of a session.

    With `n` committed tokens, the last one (the anchor, at position `n - 1`) has not been through
    the target yet: taps exist for positions `0 .. n - 2`.
    """

    rule: VerificationRule

    @property
    def prompt_length(self) -> int:
        """How many of the tokens are the prompt."""

    @property
    def tokens(self) -> Tensor:
        """All committed token ids `[n]`, on the target's device."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The same ids for the host, where reading them costs nothing."""

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """Taps of `layers` at positions `start .. stop - 1`: `[stop - start, k * d]`."""


class PrefixView:
    """A context as it was when it had only its first `length` tokens (itself a `DraftContext`)."""

    def __init__(
        self, context: DraftContext, length: int, rule: VerificationRule | None = None
    ) -> None:
        self.context, self.length = context, length
        self.rule: VerificationRule = rule or context.rule

    @property
    def prompt_length(self) -> int:
        """That of the context."""
        return self.context.prompt_length

    @property
    def tokens(self) -> Tensor:
        """The first tokens."""
        return self.context.tokens[: self.length]

    @property
    def token_ids(self) -> Sequence[int]:
        """The same for the host."""
        return self.context.token_ids[: self.length]

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """Taps, as `DraftContext.features`."""
        return self.context.features(layers, start, stop)


class Drafter(ABC):
    """Proposes tokens for the target to verify.

    Attributes:
        name: How arms and tables call it.
        tap_layers: 0-based target layers whose output it reads.
        max_draft_length: Most tokens (on one path) it can propose.
        max_tree_nodes: Most nodes of a tree it can propose; 0 where it draws chains only.
        needs_target: Fingerprint of the target it was trained for; None fits any.
        looks_up: Whether it copies what followed the newest tokens elsewhere, and says how many of
            them agreed (`Proposal.match`).
        goes_on: Whether it drafts token by token, and can be told to stop (`DraftShape.stop`).
        lag: Newest positions that catching up leaves to the next draft, which runs them anyway.
        compiled: What runs its drafts in place of torch; None for torch.
        compiling: Why, or why not; empty where it was not tried.
    """

    name: str
    tap_layers: tuple[int, ...] = ()
    max_draft_length: int
    max_tree_nodes: int = 0
    needs_target: str | None = None
    looks_up: bool = False
    goes_on: bool = False
    lag: int = 1
    compiled: Any = None
    compiling: str = ""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash of what its proposals depend on: weights, or settings where it has none."""

    @abstractmethod
    def new_state(self, capacity: int) -> Any:
        """An empty state for a sequence of at most `capacity` positions."""

    @abstractmethod
    def catch_up(self, state: Any, context: DraftContext, full: bool = False) -> int:
        """Extends `state` to all committed positions; returns how many were new.

        Args:
            state: From `new_state`.
            context: The session.
            full: See `CatchUp`; a drafter that has nothing to leave out ignores it.
        """

    def take_over(self, state: Any, length: int, capacity: int) -> Any:
        """A state for another sequence that begins with the same `length` tokens and taps.

        Args:
            state: Of the first sequence, which is done.
            length: Tokens that both begin with.
            capacity: Positions of the new one.

        Returns:
            Here an empty state; a drafter that can keep what it knows of them does.
        """
        return self.new_state(capacity)

    @abstractmethod
    def propose(self, state: Any, context: DraftContext, shape: DraftShape) -> Proposal:
        """Drafts up to `shape` tokens after the anchor. The state must be caught up.

        The tokens (and `draft_probs`) of a chain come from `context.rule.draft`, so that proposals
        agree with the target's sampling noise under `coupled` and are sampled under `rejection`.
        Those of a tree are the best of `context.rule.candidates`, never sampled.
        """

    def propose_at_each(
        self, context: DraftContext, places: Sequence[Place], shapes: Sequence[DraftShape]
    ) -> list[list[Proposal]]:
        """What `propose` would draft at each of some places of a text, in each of some shapes.

        Here one place after the other; a drafter that can take many in one pass does better
        (`draftgym.drafters.positions.batched`).

        Args:
            context: The whole text, with taps of all positions but the last.
            places: Where to draft, by rising length; one without room gets empty proposals.
            shapes: What to draft there.

        Returns:
            Per place one proposal per shape; none need carry draft distributions.
        """
        state = self.new_state(len(context.tokens))
        drawn: list[list[Proposal]] = []
        for place in places:
            view = PrefixView(context, place.length)
            self.catch_up(state, view)
            if place.room > 0:
                drawn.append([self.propose(state, view, s.cut(place.room)) for s in shapes])
            else:
                drawn.append([Proposal.empty()] * len(shapes))
        return drawn
