"""Tracing: the target writes a text once, and every arm is asked at each of its positions.

The text itself tells how much of a proposal the target would have accepted, so no arm costs a pass
of the target. Texts are written together, and a drafter's positions are drafted together
(`Drafter.propose_at_each`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.arms import PLAIN, Arm
from draftgym.decoding.drafting import Drafter, DraftShape, Place
from draftgym.decoding.model.device import read_together
from draftgym.decoding.model.target import Target
from draftgym.decoding.observation import Repeats, text_signals
from draftgym.decoding.round import play_rounds
from draftgym.decoding.session import Session
from draftgym.drafters.recorded import matched
from draftgym.rollouts.decode.batched import Request
from draftgym.rollouts.traces.trace import ArmTrace, TextTrace


def trace_texts(
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    requests: Sequence[Request],
    max_new_tokens: int,
) -> Iterator[TextTrace]:
    """Writes some texts, all in shared passes, and asks every arm at every position.

    Args:
        target: The target.
        drafters: Drafters by name.
        arms: Arms of these drafters; an arm that does not draft is not asked.
        requests: What to write.
        max_new_tokens: Tokens per text at most.
    """
    asked = [arm for arm in arms if arm.drafts]
    used = {arm.drafter: drafters[arm.drafter] for arm in asked}
    written = _write(target, used, requests, max_new_tokens)
    for request, (session, confidence, hidden) in zip(requests, written, strict=True):
        repeats = Repeats().extend(session.token_ids)[session.prompt_length :]
        traces, logprobs = _trace_arms(session, asked)
        yield TextTrace(
            request.question_id,
            request.category,
            hash_prompt(request.prompt),
            session.prompt_length,
            np.array(session.new_tokens),
            text_signals(confidence, repeats),
            hidden,
            traces,
            logprobs,
        )


def hash_prompt(prompt: Tensor) -> str:
    """A short hash of token ids."""
    return hashlib.sha256(prompt.numpy().tobytes()).hexdigest()[:12]


Written = tuple[Session, NDArray[np.float32], NDArray[np.float32]]
"""A finished session, and per new token the target's confidence `[m, 3]` and hidden `[m, d]`."""


def _write(
    target: Target,
    drafters: Mapping[str, Drafter],
    requests: Sequence[Request],
    max_new_tokens: int,
) -> list[Written]:
    """Plain decoding of all requests in shared passes."""
    sessions = [
        Session(target, one.prompt, one.rule(target), max_new_tokens, drafters) for one in requests
    ]
    facts: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in sessions]
    for session in sessions:
        session.prefill()
    running = list(zip(sessions, facts, strict=True))
    while running:
        for session, (confidence, hidden) in running:
            confidence.append(session.confidence()[0])
            hidden.append(session.last_hidden.float().clone())
        running = [one for one in running if not one[0].finished]
        if running:
            play_rounds([session for session, _ in running], [Arm(PLAIN, 0)] * len(running))
    written = []
    for session, both in zip(sessions, facts, strict=True):
        confidence_of, hidden_of = read_together([torch.stack(one) for one in both])
        written.append((session, confidence_of.numpy(), hidden_of.numpy()))
    return written


def _trace_arms(
    session: Session, arms: Sequence[Arm]
) -> tuple[dict[str, ArmTrace], dict[str, NDArray[np.float32]]]:
    """What every arm would have done at every position of a finished session.

    Returns:
        Traces by arm, and log-probabilities of the longest chain by drafter.
    """
    traces: dict[str, ArmTrace] = {}
    logprobs: dict[str, NDArray[np.float32]] = {}
    tokens = session.new_tokens
    positions = range(len(tokens) - 1)
    # The target adds one token by itself, so a draft stops one short of the token limit.
    places = [
        Place(session.prompt_length + position + 1, session.max_new_tokens - position - 2)
        for position in positions
    ]
    for name, drafter in session.drafters.items():
        mine = [arm for arm in arms if arm.drafter == name]
        shapes = _distinct([arm.shape for arm in mine])
        drawn = drafter.propose_at_each(session, places, shapes)
        for arm in mine:
            column, length = shapes.index(_asked_as(arm.shape, shapes)), arm.length
            rows = np.empty((3, len(positions)), dtype=np.int64)
            for position in positions:
                proposal = drawn[position][column]
                depth = proposal.depth if len(proposal) else 0
                drafted = len(proposal) if arm.nodes else min(len(proposal), length)
                committed = matched(proposal, tokens[position + 1 :])
                if not arm.nodes:  # a shorter chain is the beginning of a longer one
                    committed, depth = min(committed, drafted + 1), min(depth, length)
                rows[:, position] = committed, drafted, depth
            traces[str(arm)] = ArmTrace(*rows)
        if not shapes[0].is_tree:  # the longest chain comes first
            chains = [proposals[0] for proposals in drawn]
            logprobs[name] = _padded([chain.logprobs for chain in chains], shapes[0].depth)
    return traces, logprobs


def _padded(rows: Sequence[Tensor], width: int) -> NDArray[np.float32]:
    """Rows of different lengths as one array, zeros behind them."""
    padded = np.zeros((len(rows), width), dtype=np.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row.float().numpy()
    return padded


def _distinct(shapes: Sequence[DraftShape]) -> list[DraftShape]:
    """The trees, and of the chains only the longest."""
    chains = [shape.depth for shape in shapes if not shape.is_tree]
    longest = [DraftShape(max(chains))] if chains else []
    return longest + [shape for shape in shapes if shape.is_tree]


def _asked_as(shape: DraftShape, shapes: Sequence[DraftShape]) -> DraftShape:
    return shape if shape.is_tree else next(one for one in shapes if not one.is_tree)
