"""The round: choose, draft, verify, commit. Everything in draftgym is rounds.

The choice comes from outside (`arm`); training, evaluation and deployment all call `play_round`, so
what was trained is what runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from draftgym.decoding.arms import PLAIN, Arm, Asking, Cascade, Graft
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.interface import PassOutput
from draftgym.decoding.session import Session
from draftgym.decoding.verify.base import Verdict, verify_together
from draftgym.decoding.verify.proposal import Proposal, grafted

Verified = tuple[PassOutput, Verdict]
"""What the pass gave of a session's rows, and what it says of its proposal."""


@dataclass(frozen=True)
class RoundTimes:
    """Wall-clock seconds of a round's phases."""

    catch_up: float
    draft: float
    verify: float
    commit: float

    @property
    def total(self) -> float:
        """All phases together."""
        return self.catch_up + self.draft + self.verify + self.commit


@dataclass(frozen=True)
class RoundRecord:
    """What happened in one round.

    Attributes:
        arm: What was chosen.
        context: Positions in the target's cache when the round began.
        drafted: Proposed token ids.
        depth: Tokens on the longest proposed path; as many as drafted where it is a chain.
        accepted: How many drafted tokens the target accepted (none behind a stop token).
        committed: Token ids added to the text (accepted ones and the target's own, unless the text
            ended before it).
        caught_up: Positions that the drafter had missed and encoded first (its backlog); where
            catching up is eager, also those that all drafters encoded after the commit.
        times: Wall-clock of the phases; `catch_up` is that of all these positions.
        path: Which of `drafted` were accepted: their indices, root to leaf, `accepted` of them.
        margins: Per committed token, how far the target's choice was ahead of the runner-up;
            empty unless asked for.
        asked: What each drafter did that was asked, in order: one, or several of an arm's parts.
    """

    arm: Arm
    context: int
    drafted: list[int]
    depth: int
    accepted: int
    committed: list[int]
    caught_up: int
    times: RoundTimes
    path: list[int]
    margins: list[float] = field(default_factory=list)
    asked: tuple[Asking, ...] = ()

    @property
    def drafted_by(self) -> str:
        """Whose proposal was verified: the arm, of a cascade that part, plain where nobody's."""
        if not self.drafted:
            return PLAIN
        return str(self.asked[-1].arm if isinstance(self.arm, Cascade) else self.arm)

    @property
    def drafters(self) -> list[str]:
        """Those whose proposals were verified: all of a graft, the last that a cascade asked."""
        names = [one.arm.drafter for one in self.asked]
        return names if isinstance(self.arm, Graft) else names[-1:]


@dataclass(frozen=True)
class Draft:
    """A proposal with what it took.

    Attributes:
        arm: What was chosen.
        proposal: What was drafted; nothing where no room is left.
        asked: What each drafter did that was asked, in order.
        catch_up_seconds: Wall-clock of their catching up.
        draft_seconds: Wall-clock of drafting.
    """

    arm: Arm
    proposal: Proposal = field(default_factory=Proposal.empty)
    asked: tuple[Asking, ...] = ()
    catch_up_seconds: float = 0.0
    draft_seconds: float = 0.0


def play_round(session: Session, arm: Arm, with_margins: bool = False) -> RoundRecord:
    """Plays one round of one session; see `play_rounds`."""
    return play_rounds([session], [arm], with_margins)[0]


def play_rounds(
    sessions: Sequence[Session], arms: Sequence[Arm], with_margins: bool = False
) -> list[RoundRecord]:
    """Plays one round of several sessions that share a target: one verification pass for all.

    Args:
        sessions: Prefilled sessions that are not finished.
        arms: What each drafts with; lengths are cut to what can still be committed.
        with_margins: Whether to record the target's margins.

    Returns:
        One record per session. Verification is one pass, so every record carries its whole time.
    """
    drafts = [draft(session, arm) for session, arm in zip(sessions, arms, strict=True)]
    return verify_drafts(sessions, drafts, with_margins)


def draft(session: Session, arm: Arm) -> Draft:
    """The first half of `play_rounds`: catches the arm's drafters up, and lets them propose.

    A cascade asks its parts until one drafts something, a graft asks all.
    """
    made: list[Draft] = []
    for part in arm.parts:
        made.append(_draft_alone(session, part))
        if len(made[-1].proposal) and not isinstance(arm, Graft):
            break
    if len(made) < 2:
        return replace(made[0], arm=arm) if made else Draft(arm)
    proposals = [one.proposal for one in made]
    return Draft(
        arm,
        grafted(proposals) if isinstance(arm, Graft) else proposals[-1],
        tuple(asked for one in made for asked in one.asked),
        sum(one.catch_up_seconds for one in made),
        sum(one.draft_seconds for one in made),
    )


class _Once:
    """Asks only when it is first called."""

    def __init__(self, ask: Callable[[float], float]) -> None:
        self._ask, self._answer = ask, math.nan

    def __call__(self, first: float) -> float:
        if math.isnan(self._answer):
            self._answer = self._ask(first)
        return self._answer


def _draft_alone(session: Session, arm: Arm) -> Draft:
    """The draft of an arm of one drafter."""
    arm = replace(arm, ask=_Once(arm.ask)) if arm.ask else arm
    shape = arm.shape.cut(session.remaining - 1)  # the target adds one token by itself
    if shape.depth < 1:
        return Draft(arm, asked=(Asking(arm, 0, 0),))
    drafter, device = session.drafters[arm.drafter], session.target.device
    start = clock(device)
    caught_up = session.catch_up(drafter)
    caught = clock(device) if caught_up else start
    proposal = drafter.propose(session.state_of(drafter), session, shape)
    drafted, depth = len(proposal), proposal.depth
    if proposal.match < arm.least:
        proposal = Proposal.empty()
    sure = arm.sure
    if arm.ask is not None and len(proposal):
        sure = max(sure, arm.ask(proposal.first_score()))
    if sure and drafted:
        proposal = proposal.surer_than(sure)
        depth = min(depth, proposal.depth + 1)  # nobody needs more to know it
        drafted = drafted if arm.nodes else depth
    asked = Asking(arm, drafted, depth, caught_up)
    return Draft(arm, proposal, (asked,), caught - start, clock(device) - caught)


def verify_drafts(
    sessions: Sequence[Session], drafts: Sequence[Draft], with_margins: bool = False
) -> list[RoundRecord]:
    """The second half of `play_rounds`, wherever and whenever the first one was: verify, commit.

    Args:
        sessions: As `play_rounds`.
        drafts: What each drafted at its present position.
        with_margins: Whether to record the target's margins.
    """
    start = clock(sessions[0].target.device)
    verified = verify_batch(sessions, [one.proposal for one in drafts], with_margins)
    seconds = clock(sessions[0].target.device) - start
    return [commit_draft(*one, seconds) for one in zip(sessions, drafts, verified, strict=True)]


def commit_draft(
    session: Session, draft: Draft, verified: Verified, verify_seconds: float
) -> RoundRecord:
    """Keeps what verification accepted of a draft; the record of the round.

    Args:
        session: Whose draft it is.
        draft: What was drafted at its present position.
        verified: What the pass gave for it.
        verify_seconds: What the pass took.
    """
    output, verdict = verified
    context, device = session.cache.length, session.target.device
    start = clock(device)
    committed = session.commit(draft.proposal, verdict, output)
    commit_seconds = clock(device) - start
    eager, eager_seconds = _catch_up_eagerly(session)
    path = verdict.path[: len(committed)]
    return RoundRecord(
        draft.arm,
        context,
        draft.proposal.token_ids,
        draft.proposal.depth,
        len(path),
        committed,
        sum(one.caught_up for one in draft.asked) + eager,
        RoundTimes(
            draft.catch_up_seconds + eager_seconds,
            draft.draft_seconds,
            verify_seconds,
            commit_seconds,
        ),
        path,
        verdict.margins[: len(committed)],
        draft.asked,
    )


def verify_batch(
    sessions: Sequence[Session], proposals: Sequence[Proposal], with_margins: bool = False
) -> list[Verified]:
    """Verifies one proposal per session in a single ragged target pass, and reads once.

    All sessions must share one target. Nothing is committed yet (`Session.commit`).
    """
    rows = [s.verification_rows(p) for s, p in zip(sessions, proposals, strict=True)]
    taps = sorted({layer for session in sessions for layer in session.tap_layers})
    return judge(
        sessions, proposals, sessions[0].target.decoder.forward(rows, taps), with_margins, taps
    )


def judge(
    sessions: Sequence[Session],
    proposals: Sequence[Proposal],
    outputs: Sequence[PassOutput],
    with_margins: bool = False,
    taps: Sequence[int] | None = None,
) -> list[Verified]:
    """The second half of `verify_batch`: what a pass over `Session.verification_rows` says, read.

    Args:
        sessions: Whose proposals are verified.
        proposals: Of each.
        outputs: What the pass gave of each.
        with_margins: Whether verdicts tell the target's margins.
        taps: Layers that were tapped; None for those of every session.
    """
    questions = [
        (
            session.rule,
            proposal,
            session.scores(proposal, output.logits),
            len(session.token_ids) - 1,
        )
        for session, proposal, output in zip(sessions, proposals, outputs, strict=True)
    ]
    verdicts = verify_together(questions, with_margins)
    if taps is not None:
        outputs = [_own_taps(*one, taps) for one in zip(sessions, outputs, strict=True)]
    return list(zip(outputs, verdicts, strict=True))


def _own_taps(session: Session, output: PassOutput, taps: Sequence[int]) -> PassOutput:
    """Without the taps of other sessions' drafters."""
    if len(taps) == len(session.tap_layers):
        return output
    columns = [output.taps[:, taps.index(layer)] for layer in session.tap_layers]
    own = torch.stack(columns, 1) if columns else output.taps[:, :0]
    return replace(output, taps=own)


def _catch_up_eagerly(session: Session) -> tuple[int, float]:
    """Positions that the session's drafters encode after a commit, and the seconds it takes.

    Nothing where catching up is lazy, nor behind the last round: nobody will draft again.
    """
    if not session.catching_up.eager or session.finished:
        return 0, 0.0
    start = clock(session.target.device)
    positions = sum(session.catch_up(drafter) for drafter in session.drafters.values())
    return positions, clock(session.target.device) - start
