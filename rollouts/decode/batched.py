"""Many texts at once: plain decoding of a batch whose free places are refilled at once.

One pass over 32 rows costs little more than one over a single row, because both read all weights.
That is what speculation does for a single text; on top of a batch it had no clear gain here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType

from torch import Tensor

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.model.compact.cache import ROWS_TOGETHER
from draftgym.decoding.model.device import free_memory
from draftgym.decoding.model.interface import ModelInputs
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session
from draftgym.decoding.text.stops import NO_STOPS, Stops
from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.decoding.verify.sampling import PLAIN_SAMPLING, SamplingSettings
from draftgym.decoding.verify.seeds import text_seed
from draftgym.rollouts.decode.fitting import FittedPrompts, read_prompt
from draftgym.rollouts.decode.shared_passes import SharedPasses, share_beginning
from draftgym.rollouts.prompts.sets import Prompt

NO_DRAFTERS: Mapping[str, Drafter] = MappingProxyType({})


@dataclass(frozen=True)
class Request:
    """A text to write.

    Attributes:
        question_id: Whose question it answers.
        category: What kind of question.
        temperature: 0 for greedy; above, coupled noise.
        seed: Seed of that noise.
        prompt: Token ids `[m]`.
        asked: What they say, where further turns may follow.
        sampling: Top-k, top-p, min-p and repetition penalty.
        stops: What ends the text beside the target itself.
    """

    question_id: str
    category: str
    temperature: float
    seed: int
    prompt: Tensor
    asked: Prompt | None = None
    sampling: SamplingSettings = PLAIN_SAMPLING
    stops: Stops = NO_STOPS

    def rule(self, target: Target) -> VerificationRule:
        """A new rule for the text, which does not depend on drafts (`greedy` or `coupled`)."""
        return make_rule(None, self.temperature, self.seed, target.vocab_size, self.sampling)

    def inputs(self, target: Target) -> ModelInputs | None:
        """What belongs to the images of the prompt; they are opened when it is written."""
        if self.asked is None or not self.asked.images:
            return None
        return read_prompt(target, self.asked)[1]


def requests_of_run(fitted: FittedPrompts, temperature: float, seed: int) -> list[Request]:
    """The texts of a run, each with noise of its own; the same that an evaluation writes.

    Args:
        fitted: Prompts with their token ids.
        temperature: 0 for greedy; above, coupled noise.
        seed: Seed of the run.
    """
    return [
        Request(
            one.question_id, one.category, temperature, text_seed(seed, one.question_id), ids, one
        )
        for one, ids in fitted.pairs
    ]


def next_requests(
    target: Target,
    answered: Iterable[tuple[Request, list[int]]],
    seed_of: Callable[[str, float], int],
    max_new_tokens: int,
) -> list[Request]:
    """The next turns of the questions that have one, each behind its own answer.

    Args:
        target: Who answered.
        answered: Requests with the token ids of their answers.
        seed_of: Seed of a text by its question's id and temperature.
        max_new_tokens: Tokens per text at most; turns that do not fit with them are left out with a
            note (prompts are fitted before, but an answer may be read as more tokens than written).
    """
    following, too_long = [], 0
    for request, tokens in answered:
        asked = None if request.asked is None else request.asked.answered(target.decode(tokens))
        if asked is None:
            continue
        ids, name = read_prompt(target, asked)[0], asked.question_id
        if len(ids) + max_new_tokens > target.context_limit:
            too_long += 1
            continue
        seed = seed_of(name, request.temperature)
        one = replace(request, question_id=name, seed=seed, prompt=ids, asked=asked)
        following.append(one)
    if too_long:
        print(f"note: {too_long} further turns do not fit and are left out", file=sys.stderr)
    return following


USUAL_TOGETHER, MOST_TOGETHER = 64, 512
"""Texts in a pass where nobody says how many: on a processor, and at most on an accelerator."""


def texts_together(target: Target, positions: int) -> int:
    """How many texts to write in one pass: on an accelerator as many as half of its memory holds.

    Args:
        target: Who writes them.
        positions: Of the longest, prompt and response.
    """
    free = free_memory(target.device)
    if free is None:
        return USUAL_TOGETHER
    shape, item = target.decoder.shape, target.decoder.dtype.itemsize
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * item * positions
    scores = 3 * 4 * shape.vocab  # logits, noise and their sum, in float32
    return max(1, min(MOST_TOGETHER, free // 2 // (cache + scores)))


@dataclass(frozen=True)
class Response:
    """A finished text.

    Attributes:
        request: What was asked for.
        tokens: New token ids; the last one is a stop token where the target stopped by itself.
    """

    request: Request
    tokens: list[int]


def write_batched(
    target: Target, requests: Iterable[Request], max_new_tokens: int, batch_size: int
) -> Iterator[Response]:
    """Writes texts, up to `batch_size` of them in one pass, and hands each out when it is done.

    As `write_sessions`, whose sessions are over with their tokens.
    """
    for request, session in write_sessions(target, requests, max_new_tokens, batch_size):
        yield Response(request, session.new_tokens)


def write_sessions(
    target: Target,
    requests: Iterable[Request],
    max_new_tokens: int,
    batch_size: int,
    drafters: Mapping[str, Drafter] = NO_DRAFTERS,
    watch: Callable[[Sequence[Session]], None] | None = None,
) -> Iterator[tuple[Request, Session]]:
    """Writes texts, up to `batch_size` of them in one pass, and hands each out when it is done.

    A text depends on its request alone (in float32), neither on its neighbours nor on the size of
    the batch. Memory is that of the running texts' caches: give long requests first, and what
    fits at the start fits to the end. Prompts are read in the passes that others write in, and
    what they have in common with a running text is not read again.

    Args:
        target: The target.
        requests: Read one by one, as places become free.
        max_new_tokens: Tokens per text at most.
        batch_size: Texts in a pass.
        drafters: Whose taps are recorded.
        watch: Told of the sessions of each pass, every one of which has a new token.

    Yields:
        Requests with their finished sessions, whose caches serve others from the next one on.

    Raises:
        DraftgymError: A prompt is empty or does not fit.
    """
    passes, waiting = SharedPasses(target), iter(requests)
    running: list[tuple[Request, Session]] = []
    while True:
        for request in islice(waiting, batch_size - len(running)):
            length = len(request.prompt) + max_new_tokens
            rule, cache = request.rule(target), passes.new_cache(length)
            session = Session(
                *(target, request.prompt, rule, max_new_tokens, drafters),
                stops=request.stops,
                inputs=request.inputs(target),
                cache=cache,
            )
            running.append((request, session))
        if not running:
            return
        playing = _next_pass([session for _, session in running])
        passes.play(playing)
        if watch is not None:
            watch(playing)
        done = [pair for pair in running if pair[1].finished]
        running = [pair for pair in running if not pair[1].finished]
        for request, session in done:
            yield request, session
            passes.close(session)


def _next_pass(sessions: Sequence[Session]) -> list[Session]:
    """All that write, and as many prompts as a pass takes: the very first one before all others.

    What all prompts begin with is then read once.
    """
    writing = [session for session in sessions if not session.unread]
    playing, rows = list(writing), 0
    for session in sessions:
        if not session.unread:
            continue
        share_beginning(session, writing)
        rows += 1 + session.unread
        if len(playing) > len(writing) and (rows > ROWS_TOGETHER or not writing):
            break
        playing.append(session)
    return playing
