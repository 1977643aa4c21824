"""One pass of a batch: drafts are verified, and parts of prompts ride along.

    choose arms  ->  draft  ->  one ragged pass: proposals, prompts  ->  commit, tell

A prompt is read in parts of bounded size, so that nobody's stream stalls behind a long one; its
last part gives the text's first token. Texts whose beginning is being read by another wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from draftgym.decoding.arms import PLAIN, Arm
from draftgym.decoding.model.compact.side_by_side import PlaceCache
from draftgym.decoding.model.interface import NewRows, PassOutput
from draftgym.decoding.round import Draft, RoundRecord, Verified, commit_draft, draft, judge
from draftgym.decoding.session import common_beginning
from draftgym.serving.batching.choosing import BatchPolicy, Writing
from draftgym.serving.batching.guard import Guard
from draftgym.serving.batching.logprobs import rows_of_committed, token_logprobs
from draftgym.serving.batching.memory import CachePool
from draftgym.serving.batching.requests import Listener, NewTokens, PromptRead, TokenLogprob
from draftgym.serving.batching.watching import Judged, PhaseSeconds, RoundFacts

PLAIN_ARM = Arm(PLAIN, 0)
ROWS_ALONE = 512
"""Rows of prompts in a pass where nobody is writing."""
ROWS_SCORED = 128
"""Rows of a prompt in a pass that all get logits, which take a vocabulary's numbers each."""
WORTH_WAITING = 32
"""Tokens of a common beginning that another is reading, for which a text waits a pass."""


@dataclass(eq=False, kw_only=True)
class Running(Writing):
    """A text of the batch.

    Attributes:
        number: The batch's name for it.
        listener: Told of its events.
        policy: Who chooses its arms.
        began: Whether its prompt has been read.
        looked: Whether a known beginning was looked for.
        scores: Log-probabilities of what was read of its prompt, where they are asked for.
    """

    number: int
    listener: Listener
    policy: BatchPolicy
    began: bool = False
    looked: bool = False
    scores: list[TokenLogprob] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.began and (self.session.finished or not self.request.max_new_tokens)


@dataclass
class _Turn:
    """A text whose newest tokens go through a pass: the end of its prompt, or a draft.

    Attributes:
        text: The text.
        arm: What its policy chose.
        draft: What was drafted.
    """

    text: Running
    arm: Arm = PLAIN_ARM
    draft: Draft = field(default_factory=lambda: Draft(PLAIN_ARM))

    @property
    def place(self) -> tuple[int, int, int]:
        """Texts with one row are neighbours by their places in a store: they attend as one."""
        session = self.text.session
        if len(self.draft.proposal) or session.unread or not isinstance(session.cache, PlaceCache):
            return 0, 0, 0
        return 1, id(session.cache.store), session.cache.place


Part = tuple[Running, NewRows]
"""A text, and rows of its prompt behind which more follow."""


class Rounds:
    """Plays the rounds of a batch.

    Args:
        pool: Where the texts' caches are.
        guard: Leaves speculation out where it is slow; None lets policies do as they like.
        prompt_rows: Rows of prompts beside texts that are being written.
        clock: Seconds.
    """

    def __init__(
        self, pool: CachePool, guard: Guard | None, prompt_rows: int, clock: Callable[[], float]
    ) -> None:
        self.pool, self.guard, self.prompt_rows, self.clock = pool, guard, prompt_rows, clock

    def play(self, running: Sequence[Running]) -> RoundFacts:
        """One round of the texts that are being written, and some of the others' prompts.

        Args:
            running: All texts, one at least, by the time they came.

        Returns:
            What it was; texts that are complete are `finished` then.
        """
        times = [self.clock()]
        turns = [_Turn(text) for text in running if text.began]
        key = batch_key([turn.text.policy.name for turn in turns])
        judges = bool(turns) and len(turns) == len(running)  # nobody reads a prompt
        held_back = bool(turns) and self.guard is not None and not self.guard.allows(key, judges)
        if not held_back:
            self._choose(turns)
        times.append(self.clock())
        for turn in turns:
            turn.draft = draft(turn.text.session, at_most(turn.arm, turn.text.request.max_draft))
        times.append(self.clock())
        beginning, parts = self._prompts([one for one in running if not one.began], bool(turns))
        rows = sum(one.text.session.unread + 1 for one in beginning)
        rows += sum(len(part.tokens) for _, part in parts)
        verified, read = _pass(turns, beginning, parts)
        times.append(self.clock())
        seconds = times[-1] - times[-2]
        records = [_commit(turn, its, seconds) for turn, its in zip(turns, verified, strict=False)]
        for turn, its in zip(beginning, verified[len(turns) :], strict=True):
            self._begin(turn.text, its)
        for part, output in zip(parts, read, strict=True):
            _keep_part(*part, output)
        for text in running:
            if not (text.began or text.request.max_new_tokens or text.session.unread):
                _has_read(text)
        times.append(self.clock())
        for turn, record in zip(turns, records, strict=True):
            turn.text.policy.learn(turn.text, turn.arm, record)
        judged: Sequence[Judged] = ()
        if self.guard is not None and judges:
            tokens = sum(len(record.committed) for record in records)
            if self.guard.tell(key, not held_back, times[-1] - times[0], tokens):
                judged = self.guard.describe()
        phases = PhaseSeconds(*(after - before for before, after in pairwise(times)))
        return RoundFacts(records, rows, phases, held_back, judged)

    def _choose(self, turns: Sequence[_Turn]) -> None:
        """Asks each policy for its texts, all of the batch in view."""
        batch = [turn.text for turn in turns]
        for policy in dict.fromkeys(text.policy for text in batch):
            mine = [turn for turn in turns if turn.text.policy is policy]
            arms = policy.choose([turn.text for turn in mine], batch)
            for turn, arm in zip(mine, arms, strict=True):
                turn.arm = arm

    def _prompts(
        self, texts: Sequence[Running], others_write: bool
    ) -> tuple[list[_Turn], list[Part]]:
        """Which prompts end in the next pass, and which parts of others ride in it."""
        room = self.prompt_rows if others_write else ROWS_ALONE
        beginning: list[_Turn] = []
        parts: list[Part] = []
        for text in texts:
            session, request = text.session, text.request
            read = [*(turn.text for turn in beginning), *(part[0] for part in parts)]
            if room < 1 or not self._may_begin(text, read):
                continue
            scored, unread = request.prompt_logprobs is not None, session.unread
            if request.max_new_tokens and (unread < 1 or (unread < room and not scored)):
                beginning.append(_Turn(text))
                room -= unread + 1
            elif unread:
                rows = session.prompt_part(min(room, ROWS_SCORED) if scored else room, scored)
                parts.append((text, rows))
                room -= len(rows.tokens)
        return beginning, parts

    def _may_begin(self, text: Running, reading: Sequence[Running]) -> bool:
        """Looks once for a known beginning, but not while another reads a longer one."""
        if text.looked:
            return True
        tokens = text.session.token_ids
        if self.pool.reuse and any(
            common_beginning(tokens, one.session.token_ids) - one.session.cache.length
            > WORTH_WAITING
            for one in reading
        ):
            return False
        text.looked = True
        text.statistics.queue_seconds = self.clock() - text.submitted
        if text.request.prompt_logprobs is None:
            text.statistics.reused_tokens = self.pool.begin_like_another(text.session)
        return True

    def _begin(self, text: Running, verified: Verified) -> None:
        """Keeps the end of a prompt and the first token."""
        _has_read(text)
        output, verdict = verified
        tokens = text.session.commit(Draft(PLAIN_ARM).proposal, verdict, output)
        text.statistics.first_token_seconds = self.clock() - text.submitted
        text.listener(NewTokens(tokens, PLAIN, 0, _logprobs(text, output, [], tokens)))


def batch_key(names: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """What the guard tells batches apart by: how many texts, and who chooses."""
    return len(names), tuple(sorted(set(names)))


def at_most(arm: Arm, most: int | None) -> Arm:
    """An arm that drafts no more tokens than that."""
    return arm if most is None else arm.cut(most)


@torch.inference_mode()
def _pass(
    turns: list[_Turn], beginning: list[_Turn], parts: Sequence[Part]
) -> tuple[list[Verified], list[PassOutput]]:
    """One pass, and one read of its verdicts.

    Returns:
        What it says of the texts, in their order, and what it gave of the parts.
    """
    turns.sort(key=lambda turn: turn.place)
    sessions = [turn.text.session for turn in [*beginning, *turns]]
    proposals = [turn.draft.proposal for turn in [*beginning, *turns]]
    rows = [part for _, part in parts]
    rows += [one.verification_rows(its) for one, its in zip(sessions, proposals, strict=True)]
    if not rows:
        return [], []
    session = sessions[0] if sessions else parts[0][0].session
    outputs = session.target.decoder.forward(rows, session.tap_layers)
    behind, outputs = outputs[: len(parts)], outputs[len(parts) :]
    verified = judge(sessions, proposals, outputs) if sessions else []
    return verified[len(beginning) :] + verified[: len(beginning)], behind


def _commit(turn: _Turn, verified: Verified, seconds: float) -> RoundRecord:
    """Keeps what was accepted, and tells it."""
    text, (output, verdict) = turn.text, verified
    record = commit_draft(text.session, turn.draft, verified, seconds)
    arm = record.drafted_by
    counted = text.statistics
    counted.drafted.append(len(record.drafted))
    counted.accepted.append(record.accepted)
    counted.arms[arm] = counted.arms.get(arm, 0) + 1
    logprobs = _logprobs(text, output, verdict.path, record.committed)
    text.listener(NewTokens(record.committed, arm, record.accepted, logprobs))
    return record


def _keep_part(text: Running, rows: NewRows, output: PassOutput) -> None:
    """Keeps a part of a prompt, with its log-probabilities where they are asked for."""
    start, top = text.session.cache.length, text.request.prompt_logprobs
    text.session.keep_part(output)
    if top is not None:
        following = text.session.token_ids[start + 1 : start + 1 + len(rows.tokens)]
        text.scores += token_logprobs(output.logits, torch.tensor(following), top)


def _has_read(text: Running) -> None:
    text.began = True
    text.listener(PromptRead(text.scores))


def _logprobs(
    text: Running, output: PassOutput, path: Sequence[int], tokens: Sequence[int]
) -> list[TokenLogprob]:
    """Those of committed tokens, where they are asked for."""
    top = text.request.logprobs
    if top is None:
        return []
    rows = output.logits[rows_of_committed(path, len(tokens))]
    return token_logprobs(rows, torch.tensor(tokens), top)
