"""Drafts that have come, verified: one ragged pass, and what it needs to hear of rejected tokens.

    take_draft ... -> verify (one pass) -> settle: commits
                           |                 ^
                           +- Rejected -> take_correction     payload `scalar` alone

What computes runs in the server's one thread for it; what takes messages runs in its event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from draftgym.decoding.arms import Arm
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.interface import PassOutput
from draftgym.decoding.round import Draft, RoundRecord, commit_draft, verify_batch
from draftgym.decoding.verify.base import Verdict
from draftgym.decoding.verify.proposal import Proposal
from draftgym.serving.edge.payload import chances_of, check_chances, unpacked
from draftgym.serving.edge.protocol import Refused
from draftgym.serving.edge.rules import ScalarRule
from draftgym.serving.edge.server.member import Member, Verified


def take_draft(member: Member, draft: Any, payload: str, vocab_size: int, kept: int) -> None:
    """A device's draft has come.

    Args:
        member: The device.
        draft: The message.
        payload: What drafts of sampled texts carry.
        vocab_size: Size of the target's vocabulary.
        kept: Probabilities of a distribution at most.

    Raises:
        Refused: Nobody asked for it, or it cannot be one.
    """
    tokens = list(draft.tokens)
    if not member.length or draft.position != member.position:
        raise Refused("INVALID_ARGUMENT", "a draft that was not asked for")
    if len(tokens) > member.length:
        raise Refused(
            "INVALID_ARGUMENT", f"{len(tokens)} tokens drafted; {member.length} were asked for"
        )
    if tokens and max(tokens) >= vocab_size:
        raise Refused("INVALID_ARGUMENT", f"token {max(tokens)} is none of the target's")
    sampled = member.asked is not None and member.asked.temperature > 0
    for carried, mode in ((draft.distributions, "truncated"), (draft.chances, "scalar")):
        if carried and not (sampled and payload == mode):
            raise Refused("INVALID_ARGUMENT", "probabilities where nobody reads any")
    member.sampled = unpacked(draft.distributions, tokens, vocab_size, kept)
    member.chances = check_chances(draft.chances, tokens)
    member.arrived, member.length, member.waited_since = tokens, 0, None


def take_correction(member: Member, correction: Any, vocab_size: int, kept: int) -> None:
    """The distribution of a rejected token has come; arguments as `take_draft`.

    Raises:
        Refused: Nobody asked for it, or it is another's.
    """
    if member.rejected is None or correction.position != member.position:
        raise Refused("INVALID_ARGUMENT", "a correction that was not asked for")
    assert member.verified is not None and member.chances is not None  # a token was rejected
    tokens = member.verified.draft.proposal.token_ids
    token, told = tokens[member.rejected], member.chances[member.rejected]
    weights = unpacked([correction.distribution], [token], vocab_size, kept)
    assert weights is not None  # one was given
    if chances_of(weights, [token]) != [told]:
        raise Refused("INVALID_ARGUMENT", "a distribution that the token was not drafted from")
    member.sampled = weights
    member.arrived, member.rejected, member.waited_since = tokens, None, None


@torch.inference_mode()
def verify(members: Sequence[Member]) -> None:
    """One ragged pass over the drafts of these; `Member.verified` and `rejected` are what it says.

    Args:
        members: Whose drafts have come.
    """
    sessions, drafts = [], []
    for one in members:
        assert one.session is not None and one.asked is not None  # it is writing
        tokens = torch.tensor(one.arrived, dtype=torch.long)
        chances = one.chances or [1.0] * len(tokens)
        logprobs = torch.tensor(chances, dtype=torch.float64).log()
        proposal = Proposal.chain(tokens, logprobs, one.sampled)
        sessions.append(one.session)
        drafts.append(Draft(Arm(one.asked.drafter, max(1, len(tokens))), proposal))
    device = sessions[0].target.device
    start = clock(device)
    found = verify_batch(sessions, [one.proposal for one in drafts])
    seconds = clock(device) - start
    for one, draft, (output, verdict) in zip(members, drafts, found, strict=True):
        one.rejected = None
        if verdict.next_token == ScalarRule.UNSETTLED:  # other passes may come before it is settled
            one.rejected = len(verdict.path)
            kept = output.logits, output.hidden, output.taps
            output = PassOutput(*(some.clone() for some in kept))
        one.verified = Verified(draft, output, verdict, seconds)


@torch.inference_mode()
def settle(members: Sequence[Member]) -> list[RoundRecord]:
    """Commits what was verified.

    Args:
        members: Whose verdicts lack nothing.
    """
    return [_settled(one) for one in members]


def _settled(member: Member) -> RoundRecord:
    session, found = member.session, member.verified
    assert session is not None and found is not None  # it was verified
    verdict = found.verdict
    if verdict.next_token == ScalarRule.UNSETTLED:
        assert isinstance(session.rule, ScalarRule) and member.sampled is not None
        verdict = Verdict(verdict.path, session.rule.settle(member.sampled[0]), verdict.margins)
    member.arrived, member.sampled, member.chances, member.verified = None, None, None, None
    return commit_draft(session, found.draft, (found.output, verdict), found.seconds)
