"""Times the pieces of a round where decoding runs them.

A drafter that is timed in a loop of its own finds its weights in the processor's caches. In
decoding a pass of the target, many times their size, came between, and the draft takes nearly
twice as long. So each timing plays a round up to a piece, unwatched, and then the piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from draftgym.decoding.drafting import Drafter, DraftShape, PrefixView
from draftgym.decoding.round import verify_batch
from draftgym.decoding.session import Session
from draftgym.decoding.verify.base import Candidates
from draftgym.decoding.verify.greedy import GreedyRule
from draftgym.decoding.verify.proposal import Proposal

Piece = Callable[[], object]
"""A piece of a round."""
Round = Callable[[], Piece]
"""Plays a round up to a piece, and gives the piece."""
Key = TypeVar("Key", bound=Hashable)


def median_seconds(rounds: Mapping[Key, Round], repeats: int) -> dict[Key, float]:
    """The median time of each round's piece.

    All are played in turn, `repeats` times after a warm-up, so that what drifts on the machine hits
    all alike.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in rounds}
    turns = [(repeat, key) for repeat in range(repeats + 1) for key in rounds]
    for repeat, key in tqdm(turns, "measuring", unit="round", leave=False, mininterval=1):
        piece = rounds[key]()
        start = time.perf_counter()
        piece()
        if repeat:
            seconds[key].append(time.perf_counter() - start)
    return {key: median(times) for key, times in seconds.items()}


def verification(sessions: Sequence[Session], rows: Sequence[int]) -> Piece:
    """All of a round but drafting: one pass, then verdicts and commits, of chains.

    Args:
        sessions: Prefilled sessions that share a target; the piece leaves them as they are.
        rows: Rows of each in the pass: one more than its draft.
    """
    lengths = [len(session.tokens) for session in sessions]
    proposals = [
        Proposal.chain(session.tokens[0].repeat(count - 1), torch.zeros(count - 1))
        for session, count in zip(sessions, rows, strict=True)
    ]

    def verify() -> None:
        verified = verify_batch(sessions, proposals)
        for session, proposal, length, (output, verdict) in zip(
            sessions, proposals, lengths, verified, strict=True
        ):
            session.commit(proposal, verdict, output)
            session.roll_back(length)

    return verify


def verifying(session: Session, rows: int, drafter: Drafter | None = None) -> Round:
    """Verification of one session, behind a draft.

    Args:
        session: Prefilled; it is left as it was.
        rows: Rows of the pass.
        drafter: Who drafts before it; None for plain decoding, where a pass follows a pass.
    """
    verify = verification([session], [rows])
    state = None if drafter is None else _behind(session, drafter, 0)

    def play() -> Piece:
        if drafter is not None:
            drafter.propose(state, session, DraftShape(1))
        return verify

    return play


def catching_up(session: Session, drafter: Drafter, backlog: int) -> Round:
    """Catching up on `backlog` positions, behind a target step."""
    step = verifying(session, 1)
    behind = _behind(session, drafter, backlog)

    def play() -> Piece:
        state = deepcopy(behind)
        step()()
        return lambda: drafter.catch_up(state, session)

    return play


def drafting(session: Session, drafter: Drafter, shape: DraftShape) -> Round:
    """A draft behind a target step and catching up on what that committed."""
    context = PrefixView(session, len(session.tokens), _FullTrees())
    step = verifying(session, 1)
    behind = _behind(session, drafter, 1)

    def play() -> Piece:
        state = deepcopy(behind)
        step()()
        drafter.catch_up(state, session)
        return lambda: drafter.propose(state, context, shape)

    return play


class _FullTrees(GreedyRule):
    """Scores that make every tree as deep as it may be, however sure its drafter is."""

    def candidates(
        self, logits: Tensor, positions: Sequence[int], count: int, vocab: Tensor | None = None
    ) -> Candidates:
        """The usual tokens; each costs its rank, so that the best path has no end."""
        usual = super().candidates(logits, positions, count, vocab)
        ranks = torch.arange(usual.tokens.shape[1], dtype=torch.float32)
        return replace(usual, scores=-ranks.expand_as(usual.scores))


def _behind(session: Session, drafter: Drafter, backlog: int) -> Any:
    """A state of the drafter that lacks the last `backlog` positions."""
    state = drafter.new_state(session.capacity)
    drafter.catch_up(state, PrefixView(session, len(session.tokens) - backlog))
    return state
