"""Tracing: the target writes a text once, and every arm is asked at each of its positions.

The text itself tells how much of a proposal the target would have accepted, so no arm costs a pass
of the target. Texts are written together, and a drafter's positions are drafted together
(`Drafter.propose_at_each`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftgym.decoding.arms import Arm
from draftgym.decoding.drafting import DraftContext, Drafter, DraftShape, Place
from draftgym.decoding.model.device import read_together
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import Repeats, text_signals
from draftgym.decoding.session import Session, confidence
from draftgym.decoding.verify.proposal import Proposal
from draftgym.drafters.positions.recorded import facts_of
from draftgym.rollouts.decode.batched import Request, write_sessions
from draftgym.rollouts.traces.trace import ArmTrace, Drafts, TextTrace

Number = TypeVar("Number", bound=np.number)


def trace_texts(
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
    requests: Sequence[Request],
    max_new_tokens: int,
    batch_size: int | None = None,
) -> Iterator[TextTrace]:
    """Writes some texts in shared passes, and asks every arm at every position.

    Args:
        target: The target.
        drafters: Drafters by name.
        arms: Arms of these drafters; an arm that does not draft is not asked.
        requests: What to write.
        max_new_tokens: Tokens per text at most.
        batch_size: Texts in a pass at most; by default all.

    Yields:
        Traces in the order of the requests.
    """
    asked, facts = [arm for arm in arms if arm.drafts], _Facts()
    used = {arm.drafter: drafters[arm.drafter] for arm in asked}
    size, done = batch_size or len(requests), dict[int, TextTrace]()
    following = iter(requests)
    due = next(following, None)
    written = write_sessions(target, requests, max_new_tokens, size, used, facts.watch)
    for request, session in written:
        done[id(request)] = _trace(request, session, asked, *facts.pop(session))
        while due is not None and id(due) in done:
            yield done.pop(id(due))
            due = next(following, None)


def _trace(
    request: Request,
    session: Session,
    arms: Sequence[Arm],
    sure: NDArray[np.float32],
    hidden: NDArray[np.float32],
) -> TextTrace:
    """The trace of a finished session."""
    repeats = Repeats().extend(session.token_ids)[session.prompt_length :]
    length, limit = len(session.token_ids), session.prompt_length + session.max_new_tokens
    # The target adds one token by itself, so a draft stops one short of the token limit.
    places = [Place(at, limit - at - 1) for at in range(session.prompt_length + 1, length)]
    traced = trace_arms(session, places, session.drafters, arms)
    return TextTrace(
        request.question_id,
        request.category,
        hash_prompt(request.prompt),
        session.prompt_length,
        np.array(session.new_tokens),
        text_signals(sure, repeats),
        hidden,
        traced.arms,
        traced.logprobs,
        traced.drafts,
        traced.matches,
        traced.scores,
    )


def hash_prompt(prompt: Tensor) -> str:
    """A short hash of token ids."""
    return hashlib.sha256(prompt.numpy().tobytes()).hexdigest()[:12]


TOGETHER = 4
"""Rows of logits that are looked at together, so that they stay in the caches."""


class _Facts:
    """What the target thought of every new token: confidence `[3]` and hidden state `[d]`."""

    def __init__(self) -> None:
        self._of: dict[Session, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    @torch.inference_mode()
    def watch(self, sessions: Sequence[Session]) -> None:
        """Looks at the newest token of each session."""
        for start in range(0, len(sessions), TOGETHER):
            some = sessions[start : start + TOGETHER]
            sure = confidence(torch.stack([session.last_logits for session in some]))
            for session, one in zip(some, sure, strict=True):
                self._of[session].append((one, session.last_hidden.float().clone()))

    def pop(self, session: Session) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Confidence `[m, 3]` and hidden states `[m, d]` of a finished session."""
        columns = zip(*self._of.pop(session), strict=True)
        sure, hidden = read_together([torch.stack(column) for column in columns])
        return sure.numpy(), hidden.numpy()


@dataclass
class TracedArms:
    """What arms would have done with one text; see `TextTrace`."""

    arms: dict[str, ArmTrace] = field(default_factory=dict)
    logprobs: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    drafts: dict[str, Drafts] = field(default_factory=dict)
    matches: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def trace_arms(
    text: DraftContext,
    places: Sequence[Place],
    drafters: Mapping[str, Drafter],
    arms: Sequence[Arm],
) -> TracedArms:
    """What every arm would have done at every position of a text that is written.

    Args:
        text: The text: a finished session, or what is left of one (`RecordedText`).
        places: Where a round can begin: behind each new token but the last.
        drafters: By name; all of them are asked.
        arms: Arms of these drafters.
    """
    traced = TracedArms()
    tokens = text.token_ids[text.prompt_length :]
    positions = range(len(tokens) - 1)
    for name, drafter in drafters.items():
        mine = [arm for arm in arms if arm.drafter == name]
        shapes = _distinct([arm.shape for arm in mine])
        drawn = drafter.propose_at_each(text, places, shapes)
        for column, shape in enumerate(shapes):
            made = [proposals[column] for proposals in drawn]
            found = [facts_of(made[at], tokens[at + 1 :]) for at in positions]
            committed, drafted, depth = np.array(found, dtype=np.int64).reshape(-1, 3).T
            for arm in mine:
                if shape.is_tree and arm.shape == shape:
                    traced.arms[str(arm)] = ArmTrace(committed, drafted, depth)
                elif not shape.is_tree and not arm.nodes:  # the beginning of the longest chain
                    cut = np.minimum(drafted, arm.length)
                    traced.arms[str(arm)] = ArmTrace(np.minimum(committed, cut + 1), cut, cut)
            key = str(Arm(name, shape.depth, shape.nodes)) if shape.is_tree else name
            chains = [proposal.logprobs.float() for proposal in made]
            traced.logprobs[key] = _padded(chains, shape.budget, np.float32)
            if text.rule.temperature:
                own = [p.logprobs.float() if p.scores is None else p.scores for p in made]
                traced.scores[key] = _padded(own, shape.budget, np.float32)
            traced.drafts[key] = _drafts(made, shape)
            if drafter.looks_up:
                traced.matches[key] = np.array([proposal.match for proposal in made], np.int64)
    return traced


def _drafts(proposals: Sequence[Proposal], shape: DraftShape) -> Drafts:
    tokens = [torch.tensor(one.token_ids) for one in proposals]
    parents = [one.parents for one in proposals]
    return Drafts(
        _padded(tokens, shape.budget, np.int32),
        _padded(parents, shape.budget, np.int8) if shape.is_tree else None,
    )


def _padded(rows: Sequence[Tensor], width: int, kind: type[Number]) -> NDArray[Number]:
    """Rows of different lengths as one array, zeros behind them."""
    padded = np.zeros((len(rows), width), dtype=kind)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row.numpy()
    return padded


def _distinct(shapes: Sequence[DraftShape]) -> list[DraftShape]:
    """The trees, and of the chains only the longest."""
    chains = [shape.depth for shape in shapes if not shape.is_tree]
    longest = [DraftShape(max(chains))] if chains else []
    return longest + [shape for shape in shapes if shape.is_tree]
