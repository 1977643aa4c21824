"""The batch: one thread that owns the target, and a queue before it.

Texts join and leave between rounds (`draftgym.serving.batching.rounds`). What a text says depends
on its request alone; who else is there, and what drafts for it, changes when it is said.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count

import torch

from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session
from draftgym.decoding.text.stops import StopCheck
from draftgym.decoding.verify.base import VerificationRule
from draftgym.decoding.verify.rules import make_rule
from draftgym.serving.batching.choosing import BatchPolicy
from draftgym.serving.batching.guard import Guard
from draftgym.serving.batching.memory import CachePool
from draftgym.serving.batching.policy_set import PolicySet
from draftgym.serving.batching.prediction import PredictedLookup
from draftgym.serving.batching.requests import (
    Event,
    Failed,
    Finished,
    Listener,
    TextRequest,
    TextStatistics,
)
from draftgym.serving.batching.rounds import Rounds, Running
from draftgym.serving.batching.watching import NoWatch, Watch
from draftgym.serving.planning.predicted import RoundPrices

LOOKUP = "ngram"


class QueueFull(Exception):
    """So many texts wait already that no more are taken.

    Args:
        retry_after: Seconds after which it is worth asking again.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


@dataclass(frozen=True)
class BatchSettings:
    """Limits of a batch.

    Attributes:
        most_running: Texts in a pass.
        most_waiting: Texts that wait for a place; more are refused.
        prompt_rows: Rows of prompts that ride in a pass beside texts that are being written.
        cache_bytes: Memory for keys, values, taps and drafters' states, also of finished texts
            whose beginnings are kept for others.
        guard: Whether speculation is left out while it is slower than plain decoding.
        reuse: Whether prompts that begin alike are read once. Measurements that send the same
            prompts again do without.
    """

    most_running: int = 32
    most_waiting: int = 256
    prompt_rows: int = 64
    cache_bytes: int = 2 << 30
    guard: bool = True
    reuse: bool = True


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A text in the queue."""

    number: int
    request: TextRequest
    rule: VerificationRule
    policy: BatchPolicy
    listener: Listener
    submitted: float

    @property
    def capacity(self) -> int:
        """Positions that it may need."""
        return len(self.request.prompt) + max(1, self.request.max_new_tokens)


class Batcher:
    """Writes texts of one target, many at a time.

    Args:
        target: The target.
        drafters: Drafters by name.
        policies: Who chooses arms.
        settings: Limits.
        watch: Told of all that happens.
        clock: Seconds.
        prices: Say what rounds should take; None for nobody.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[str, Drafter],
        policies: PolicySet,
        settings: BatchSettings | None = None,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.perf_counter,
        prices: RoundPrices | None = None,
    ) -> None:
        self.settings = settings or BatchSettings()
        self._target, self._drafters, self._policies = target, dict(drafters), policies
        self._watch, self._clock = watch or NoWatch(), clock
        self._pool = CachePool(target, drafters, self.settings.cache_bytes, self.settings.reuse)
        guard = Guard() if self.settings.guard else None
        self._rounds = Rounds(self._pool, guard, self.settings.prompt_rows, clock)
        self._prices = prices
        self._numbers = count()
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._left: set[int] = set()
        self._running: list[Running] = []
        self._text_seconds = 1.0
        self._closing = False
        self._full = 0, 0, 0
        self._thread = threading.Thread(target=self._work, name="batch", daemon=True)

    @property
    def running(self) -> int:
        """Texts that are being read or written."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return len(self._waiting)

    @property
    def kept(self) -> int:
        """Finished texts that others may begin like."""
        return self._pool.kept

    @property
    def bytes_in_use(self) -> int:
        """Memory of running and of kept texts."""
        return self._pool.bytes_in_use

    @property
    def is_alive(self) -> bool:
        """Whether its thread works."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread; without it, `step` plays rounds one by one."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread behind its present round; texts that are not finished stay so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, request: TextRequest, listener: Listener) -> int:
        """Puts a text into the queue; any thread may.

        Args:
            request: What is to be written.
            listener: Told of its events, on the batch's thread.

        Returns:
            Its number.

        Raises:
            DraftgymError: The request can never be served: too long for the context or the cache, a
                token that the target lacks, an impossible setting, an unknown policy.
            QueueFull: Too many wait.
        """
        rule = self._check(request)
        policy = self._policies.find(request.policy, bool(request.prediction))
        number = next(self._numbers)

        def tell(event: Event) -> None:
            try:
                listener(event)
            except Exception:  # who cannot hear has left
                self.cancel(number)

        one = _Waiting(number, request, rule, policy, tell, self._clock())
        if not self.fits(one.capacity):
            raise DraftgymError(
                f"a text of {one.capacity} positions is longer than the server's cache is large",
                "ask for fewer tokens",
            )
        with self._changed:
            if len(self._waiting) >= self.settings.most_waiting:
                self._watch.refused()
                raise QueueFull(self._wait_of(len(self._waiting)))
            self._waiting.append(one)
            self._changed.notify()
        return number

    def fits(self, positions: int) -> bool:
        """Whether a text of so many positions, prompt and new ones, finds room when it is alone."""
        return self._pool.fits(positions)

    def cancel(self, number: int) -> None:
        """Forgets a text, within a round; any thread may. Its listener hears nothing more."""
        with self._changed:
            self._left.add(number)
            self._changed.notify()

    def step(self) -> None:
        """One round: texts leave, join and go on."""
        self._forget_left()
        self._admit()
        if self._running:
            try:
                self._play()
            except Exception as error:  # one text's mistake may not end the server
                self._fail(error)
            for text in [one for one in self._running if one.finished]:
                self._finish(text)
        full = len(self._running), len(self._waiting), self._pool.bytes_in_use
        if full != self._full:
            self._watch.queue(*full)
            self._full = full

    def _play(self) -> None:
        unread = [one for one in self._running if not one.began]
        facts = self._rounds.play(self._running)
        if self._prices is not None:
            predicted = self._prices.seconds(facts.records, facts.prompt_rows)
            facts = replace(facts, predicted=predicted)
        self._watch.round(facts)
        for text in unread:
            if text.began:
                self._watch.began(text.statistics, min(1, text.request.max_new_tokens))

    def _work(self) -> None:
        torch.set_num_threads(self._target.precision.threads)  # threads count for themselves
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closing):
                    self._left.clear()
                    self._changed.wait()
                if self._closing:
                    return
            self.step()

    def _check(self, request: TextRequest) -> VerificationRule:
        """The rule of a request that can be served."""
        target, count = self._target, len(request.prompt)
        if not count:
            raise DraftgymError("the prompt is empty", "give some text")
        if count + request.max_new_tokens > target.context_limit:
            raise DraftgymError(
                f"{count} tokens of the prompt and {request.max_new_tokens} to write do not fit "
                f"the {target.context_limit} positions of {target.name}",
                "shorten the prompt or ask for fewer tokens",
            )
        target.check_tokens(request.prompt)
        StopCheck(target, request.stops)
        settings = request.temperature, request.seed, target.vocab_size, request.sampling
        return make_rule(None, *settings)

    def _wait_of(self, texts: int) -> float:
        """Seconds until so many texts have found a place, as texts go."""
        return max(1.0, self._text_seconds * texts / self.settings.most_running)

    def _forget_left(self) -> None:
        with self._changed:
            left, self._left = self._left, set()
            if left:
                gone = [one for one in self._waiting if one.number in left]
                self._waiting = deque(one for one in self._waiting if one.number not in left)
        if left:
            for one in gone:
                self._watch.text(TextStatistics(len(one.request.prompt)), 0, "abort")
            for text in [one for one in self._running if one.number in left]:
                self._leave(text, "abort")

    def _admit(self) -> None:
        """Lets texts in as long as there are places and memory; who does not fit waits."""
        while len(self._running) < self.settings.most_running:
            with self._changed:
                one = self._waiting[0] if self._waiting else None
            if one is None or not self._pool.room_for(one.capacity):
                return
            with self._changed:
                self._waiting.popleft()
            self._enter(one)

    def _enter(self, one: _Waiting) -> None:
        request, drafters = one.request, self._drafters
        if request.prediction and LOOKUP in drafters:
            lookup = PredictedLookup(drafters[LOOKUP], request.prediction)
            drafters = {**drafters, LOOKUP: lookup}
        session = Session(
            *(self._target, request.prompt, one.rule, max(1, request.max_new_tokens), drafters),
            stops=request.stops,
            cache=self._pool.new_cache(one.capacity),
        )
        self._pool.enter(session)
        self._running.append(
            Running(
                request,
                session,
                TextStatistics(len(request.prompt)),
                number=one.number,
                listener=one.listener,
                policy=one.policy,
                submitted=one.submitted,
            )
        )

    def _finish(self, text: Running) -> None:
        text.statistics.seconds = seconds = self._clock() - text.submitted
        self._text_seconds += 0.1 * (seconds - self._text_seconds)
        reason = text.session.finish_reason if text.request.max_new_tokens else "length"
        self._leave(text, reason)
        text.listener(Finished(reason, text.session.stop_reason, text.statistics))

    def _leave(self, text: Running, outcome: str) -> None:
        self._running.remove(text)
        self._pool.leave(text.session, keep=outcome != "error")
        self._watch.text(text.statistics, len(text.session.new_tokens), outcome)

    def _fail(self, error: Exception) -> None:
        """Ends all texts of a round that failed; the next ones are served."""
        if not isinstance(error, DraftgymError):
            traceback.print_exc(file=sys.stderr)
        problem = error.problem if isinstance(error, DraftgymError) else "the server failed"
        for text in list(self._running):
            self._leave(text, "error")
            text.listener(Failed(problem, is_ours=True))
