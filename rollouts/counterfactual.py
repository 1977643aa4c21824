"""What every arm would have committed at every position of a text.

A policy never changes the text, and a proposal depends on the committed prefix alone. So the target
writes a text once, and then each arm is asked, at each position, for what it would have drafted
there; the text itself tells how much of it the target would have accepted. Any policy's rounds can
be read off the result without decoding again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from decoding.arms import PLAIN, Arm
from decoding.calibration import PrefixView
from decoding.drafting import Drafter
from decoding.proposal import Proposal
from decoding.round import play_rounds
from decoding.session import Session
from decoding.target import Target
from decoding.verification import VerificationRule, children_by_edge


@dataclass(frozen=True)
class ArmTrace:
    """What one arm would have done, per position of the anchor.

    Attributes:
        committed: Tokens a round with this arm would have committed `[n]`, at least 1.
        drafted: Tokens it would have proposed `[n]`.
        depth: Tokens on its longest path `[n]`.
    """

    committed: list[int]
    drafted: list[int]
    depth: list[int]


@dataclass(frozen=True)
class TextTrace:
    """A text with every arm's counterfactuals.

    Position i stands for the round whose anchor is the i-th new token; the last token of a text
    needs no round, so a text of m new tokens has n = m - 1 positions.

    Attributes:
        prompt_tokens: Length of the prompt.
        tokens: New tokens `[n + 1]`.
        arms: One trace per arm, by the arm's text.
    """

    prompt_tokens: int
    tokens: list[int]
    arms: dict[str, ArmTrace]


def trace_texts(
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    prompts: Sequence[Tensor],
    rule: VerificationRule,
    max_new_tokens: int,
) -> Iterator[TextTrace]:
    """Writes some texts, all in shared passes, and asks every arm at every position.

    Args:
        target: The target.
        drafters: Drafters by name.
        arms: Arms of these drafters; an arm that does not draft is not asked.
        prompts: Prompt token ids.
        rule: A rule whose text does not depend on the arm (`greedy` or `coupled`).
        max_new_tokens: Tokens per text at most.
    """
    used = {arm.drafter: drafters[arm.drafter] for arm in arms if arm.drafts}
    sessions = [Session(target, prompt, rule, max_new_tokens, used) for prompt in prompts]
    for session in sessions:
        session.prefill()
    while running := [session for session in sessions if not session.finished]:
        play_rounds(running, [Arm(PLAIN, 0)] * len(running))
    for session in sessions:
        yield _trace(session, [arm for arm in arms if arm.drafts], max_new_tokens)


def _trace(session: Session, arms: Sequence[Arm], max_new_tokens: int) -> TextTrace:
    tokens = session.new_tokens
    traces = {str(arm): ArmTrace([], [], []) for arm in arms}
    states = {
        name: drafter.new_state(session.capacity) for name, drafter in session.drafters.items()
    }
    for position in range(len(tokens) - 1):
        context = PrefixView(session, session.prompt_length + position + 1)
        for name, drafter in session.drafters.items():
            drafter.catch_up(states[name], context)
        room = max_new_tokens - position - 2  # the target adds one token by itself
        for arm in arms:
            proposal = Proposal.empty()
            if room > 0:
                drafter = session.drafters[arm.drafter]
                proposal = drafter.propose(states[arm.drafter], context, arm.shape.cut(room))
            trace = traces[str(arm)]
            trace.committed.append(matched(proposal, tokens[position + 1 :]))
            trace.drafted.append(len(proposal))
            trace.depth.append(int(proposal.depths().max()) if len(proposal) else 0)
    return TextTrace(session.prompt_length, tokens, traces)


def matched(proposal: Proposal, text: Sequence[int]) -> int:
    """Tokens that a round would commit if the target's text went on like `text` (not empty)."""
    children = children_by_edge(proposal)
    node, accepted = -1, 0
    while accepted < len(text) and (node, text[accepted]) in children:
        node = children[node, text[accepted]]
        accepted += 1
    return min(accepted + 1, len(text))
