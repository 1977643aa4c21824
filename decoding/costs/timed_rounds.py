"""Times the pieces of a round where decoding runs them.

A drafter that is timed in a loop of its own finds its weights in the processor's caches. In
decoding a pass of the target, many times their size, came between, and the draft takes nearly
twice as long. So each timing plays a round up to a piece, unwatched, and then the piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

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


def verification(sessions: Sequence[Session], rows: Sequence[int]) -> Piece:
    """All of a round but drafting: one pass, then verdicts and commits, of chains.

    Args:
        sessions: Prefilled sessions that share a target; the piece leaves them as they are.
        rows: Rows of each in the pass: one more than its draft.
    """
    lengths = [len(session.tokens) for session in sessions]
    proposals = [
        _any_chain(session, count - 1) for session, count in zip(sessions, rows, strict=True)
    ]

    def verify() -> None:
        verified = verify_batch(sessions, proposals)
        for session, proposal, length, (output, verdict) in zip(
            sessions, proposals, lengths, verified, strict=True
        ):
            session.commit(proposal, verdict, output)
            session.roll_back(length)

    return verify


def _any_chain(session: Session, length: int) -> Proposal:
    tokens = session.tokens[0].repeat(length)
    return Proposal.chain(tokens, torch.zeros(length, device=tokens.device))


def verifying(
    session: Session, rows: int, drafter: Drafter | None = None, state: Any = None
) -> Round:
    """Verification of one session, behind a draft.

    Args:
        session: Prefilled; it is left as it was.
        rows: Rows of the pass.
        drafter: Who drafts before it; None for plain decoding, where a pass follows a pass.
        state: Its state `behind` by nothing, if there is one already.
    """
    verify = verification([session], [rows])
    if drafter is not None and state is None:
        state = behind(session, drafter, 0)

    def play() -> Piece:
        if drafter is not None:
            drafter.propose(state, session, DraftShape(1))
        return verify

    return play


def catching_up(session: Session, drafter: Drafter, backlog: int, behind_by: Any = None) -> Round:
    """Catching up on `backlog` positions, behind a target step.

    Args:
        session: Prefilled; it is left as it was.
        drafter: Who catches up.
        backlog: How many positions it lacks.
        behind_by: Its state `behind` by so many, if there is one already.
    """
    step = verifying(session, 1)
    lacking = behind(session, drafter, backlog) if behind_by is None else behind_by

    def play() -> Piece:
        state = deepcopy(lacking)
        step()()
        return lambda: drafter.catch_up(state, session)

    return play


def drafting(
    session: Session, drafter: Drafter, shape: DraftShape, behind_by_one: Any = None
) -> Round:
    """A draft behind a target step and catching up on what that committed.

    Args:
        session: Prefilled; it is left as it was.
        drafter: Who drafts.
        shape: How much.
        behind_by_one: Its state `behind` by one position, if there is one already.
    """
    context = PrefixView(session, len(session.tokens), _FullTrees())
    step = verifying(session, 1)
    lacking = behind(session, drafter, 1) if behind_by_one is None else behind_by_one

    def play() -> Piece:
        state = deepcopy(lacking)
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
        count, device = usual.tokens.shape[1], usual.tokens.device
        ranks = torch.arange(count, dtype=torch.float32, device=device)
        return replace(usual, scores=-ranks.expand_as(usual.scores))


def behind(session: Session, drafter: Drafter, backlog: int) -> Any:
    """A state of the drafter that lacks the last `backlog` positions."""
    state = drafter.new_state(session.capacity)
    drafter.catch_up(state, PrefixView(session, len(session.tokens) - backlog))
    return state
