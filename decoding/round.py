"""The round: choose, draft, verify, commit. Everything in draftgym is rounds.

The choice comes from outside (`arm`); training, evaluation and deployment all call `play_round`, so
what was trained is what runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from decoding.arms import Arm
from decoding.proposal import Proposal
from decoding.session import Session
from decoding.transformer import PassOutput
from decoding.verification import Verdict


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
        accepted: How many drafted tokens the target accepted.
        committed: Token ids added to the text (accepted ones and the target's own).
        caught_up: Positions that the drafter had missed and encoded first (its backlog).
        times: Wall-clock of the phases.
        margins: Per committed token, how far the target's choice was ahead of the runner-up;
            empty unless asked for.
    """

    arm: Arm
    context: int
    drafted: list[int]
    accepted: int
    committed: list[int]
    caught_up: int
    times: RoundTimes
    margins: list[float] = field(default_factory=list)


def play_round(session: Session, arm: Arm, with_margins: bool = False) -> RoundRecord:
    """Plays one round of a session.

    Args:
        session: A prefilled session that is not finished.
        arm: What to draft with; its length is cut to what can still be committed.
        with_margins: Whether to record the target's margins.
    """
    context = session.cache.length
    start = time.perf_counter()
    caught_up, proposal, drafting = _draft(session, arm)
    drafted = time.perf_counter()
    output, verdict = verify_batch([session], [proposal], with_margins)[0]
    verified = time.perf_counter()
    committed = session.commit(proposal, verdict, output)
    end = time.perf_counter()
    times = RoundTimes(drafting - start, drafted - drafting, verified - drafted, end - verified)
    return RoundRecord(
        arm,
        context,
        proposal.tokens.tolist(),
        len(verdict.path),
        committed,
        caught_up,
        times,
        verdict.margins[: len(committed)],
    )


def verify_batch(
    sessions: Sequence[Session], proposals: Sequence[Proposal], with_margins: bool = False
) -> list[tuple[PassOutput, Verdict]]:
    """Verifies one proposal per session in a single ragged target pass.

    All sessions must share one target. Nothing is committed yet (`Session.commit`).
    """
    rows = [s.verification_rows(p) for s, p in zip(sessions, proposals, strict=True)]
    taps = sorted({layer for session in sessions for layer in session.tap_layers})
    outputs = sessions[0].target.decoder.forward(rows, taps)
    results = []
    for session, proposal, output in zip(sessions, proposals, outputs, strict=True):
        if len(taps) != len(session.tap_layers):  # other sessions' drafters tap other layers
            columns = [taps.index(layer) for layer in session.tap_layers]
            output = replace(output, taps=output.taps[:, columns])
        anchor = session.tokens.shape[0] - 1
        verdict = session.rule.verify(proposal, output.logits, anchor, with_margins)
        results.append((output, verdict))
    return results


def _draft(session: Session, arm: Arm) -> tuple[int, Proposal, float]:
    """Catch up, then draft; returns the backlog, the proposal and when drafting began."""
    length = min(arm.length, session.remaining - 1)  # the target adds one token by itself
    if not arm.drafts or length < 1:
        return 0, Proposal.empty(), time.perf_counter()
    drafter = session.drafters[arm.drafter]
    state = session.state_of(drafter)
    caught_up = drafter.catch_up(state, session)
    began = time.perf_counter()
    return caught_up, drafter.propose(state, session, length), began
