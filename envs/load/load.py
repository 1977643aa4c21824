"""Servers under load, many at once, from traces: the queue, the batch, and one pass a round.

    requests arrive  ->  wait for a place  ->  their prompts are read in parts  ->  are written
                                                          |_____ one pass of the target ____|

Every round each request that is being written gets an arm. What it commits is the trace's: an arm
changes when a text is there, never what it says. The pass has a row for each of them, one for every
drafted token, and as many of prompts as may ride along, those of whoever came first; it takes what
the whole batch makes it take (`draftgym.decoding.costs.server_costs`). A prompt's last part gives
the first token. That is how `draftgym serve` plays rounds (`draftgym.serving.batching.rounds`);
left out are its cache of beginnings, its limits of memory and of the queue, and its guard.

Notation: n = servers, K = places of the batch, N = requests of an episode, D = drafters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftgym.decoding.arms import Arm
from draftgym.decoding.costs.server_costs import ServerCosts
from draftgym.decoding.observers.observation import RouterMemory
from draftgym.envs.load.requests import Requests
from draftgym.envs.load.settings import ServerSettings
from draftgym.envs.load.texts import ServedTexts
from draftgym.policies.serving.memory import AcceptanceMemory
from draftgym.policies.serving.servers import Floats, Ints, Mask, RowFacts, seconds_of
from draftgym.rollouts.replay.pricing import backlogs


@dataclass(frozen=True)
class ServedRound:
    """A round of n servers.

    Attributes:
        number: Which request is in each place `[n, K]`; -1 in empty ones.
        deciding: Who was written, and so had an arm `[n, K]`.
        arms: It `[n, K]`; 0 of the others.
        committed: Tokens that each got, first ones included, of all its copies `[n, K]`.
        drafted: Tokens that were verified `[n, K]`.
        verified: Whose proposals they were `[n, K, D]`.
        read: Rows of prompts in the pass `[n, K]`.
        began: Whose first token it gave `[n, K]`.
        finished: Whose last one `[n, K]`.
        draft_seconds, pass_seconds: Time of the round `[n]` each.
        idle: Seconds afterwards until the next request came `[n]`; 0 where somebody was there.
    """

    number: Ints
    deciding: Mask
    arms: Ints
    committed: Ints
    drafted: Ints
    verified: Mask
    read: Ints
    began: Mask
    finished: Mask
    draft_seconds: Floats
    pass_seconds: Floats
    idle: Floats

    @property
    def seconds(self) -> Floats:
        """Time of the round `[n]`."""
        return self.draft_seconds + self.pass_seconds


class Load:
    """n servers, stepped together (`draftgym.policies.serving.servers.Servers`).

    Args:
        texts: What requests ask for.
        settings: What the servers are made of.
        costs: What rounds cost.
        count: n.

    Attributes:
        requests: Those of the episodes.
        number: Which request is in each place `[n, K]`; -1 in empty ones.
        text, row: What it asks for, and where it stands `[n, K]` each.
        unread: Tokens of its prompt that are still to be read `[n, K]`.
        clock: Seconds since the reset `[n]`.
        memory: What a router remembers of each request; place k of server i is its episode
            `i K + k`.
        accepted: What is remembered of its drafts, likewise.
    """

    def __init__(
        self, texts: ServedTexts, settings: ServerSettings, costs: ServerCosts, count: int = 1
    ) -> None:
        self.texts, self.settings, self.costs, self.count = texts, settings, costs, count
        self.shape = count, settings.places
        of = settings.arrivals, settings.mixture, count, settings.requests
        self.requests = Requests(texts, *of)
        places = count * settings.places
        self.memory = RouterMemory(texts.arms, places)
        self.accepted = AcceptanceMemory(len(texts.drafters), places)
        self.number, self.unread = np.full(self.shape, -1), np.zeros(self.shape, np.int64)
        self.text, self.row = np.zeros((2, *self.shape), np.int64)
        self._last_used = np.zeros((*self.shape, len(texts.drafters)), np.int64)
        self.clock = np.zeros(count)

    def reset(self, rng: Sequence[np.random.Generator], servers: Ints | None = None) -> None:
        """Begins anew, at the moment the first request comes.

        Args:
            rng: A generator for each server.
            servers: Which of them (indices); None for all.
        """
        servers = np.arange(self.count) if servers is None else servers
        self.requests.begin(rng, servers)
        self.number[servers], self.clock[servers] = -1, 0.0
        self._admit()

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What there is to choose from."""
        return self.texts.arms

    @property
    def drafters(self) -> tuple[str, ...]:
        """Drafters of the arms."""
        return self.texts.drafters

    @property
    def lookups(self) -> tuple[str, ...]:
        """Those of them that are asked for every text in every round."""
        return self.texts.lookups

    @property
    def copies(self) -> int:
        """How many identical requests each stands for."""
        return self.settings.copies

    @property
    def active(self) -> Mask:
        """Which places are taken `[n, K]`."""
        return np.asarray(self.number >= 0)

    @property
    def deciding(self) -> Mask:
        """Whose arms the next round reads: prompts have been read `[n, K]`."""
        return np.asarray((self.number >= 0) & (self.unread == 0))

    @property
    def context(self) -> Ints:
        """Positions in the target's cache `[n, K]`; 0 of empty places."""
        return np.where(self.active, self.texts.context[self.row] - self.unread, 0)

    @property
    def waiting(self) -> Ints:
        """Requests in the queue `[n]`."""
        return self.requests.waiting(self.clock)

    @property
    def done(self) -> Mask:
        """Whether every request has been served `[n]`."""
        return self.requests.served

    @property
    def waited(self) -> Floats:
        """Seconds since each request arrived `[n, K]`; of the first one in empty places."""
        return self.clock[:, None] - self._time(self.requests.arrival)

    @property
    def pace(self) -> Floats:
        """Mean seconds between its tokens so far `[n, K]`; 0 before the second."""
        written = np.where(self.deciding, self.row - self.texts.first[self.text], 0)
        began = np.where(written > 0, self._time(self.requests.first_token), 0.0)
        since = (self.clock[:, None] - began) / np.maximum(written, 1)
        return np.where(written > 0, since, 0.0)

    @property
    def found(self) -> NDArray[np.float32]:
        """What lookups found `[n, K, 6 L]`."""
        return np.asarray(self.texts.found[self.row])

    @property
    def ids(self) -> Ints:
        """Token ids that a forecast reads `[n, K, 2 + L]`."""
        return np.asarray(self.texts.ids[self.row])

    @property
    def acceptance(self) -> NDArray[np.float32]:
        """What drafts of each came to `[n, K, 6 D]`."""
        return self.accepted.numbers().reshape(*self.shape, -1)

    @property
    def signals(self) -> NDArray[np.float32]:
        """What a router would see of each `[n, K, s]`."""
        row = self.row.ravel()
        share = self.texts.remaining[row] / self.texts.limit
        seen = self.memory.signals(self.texts.signals[row], self.texts.context[row], share)
        return seen.reshape(*self.shape, -1)

    @property
    def alone(self) -> Floats:
        """Seconds of drafting by the cost model with each arm `[n, K, A]`."""
        return np.asarray(self.texts.alone[self.row])

    def options(self) -> RowFacts:
        """What a round with each arm would do in every place, `[n, K, A]`; read who is deciding."""
        return self.texts.facts(self.row)

    def missed(self, asked: Mask) -> Ints:
        """Positions that drafters encode first, `[n, K, ..., D]` like `asked`; 0 where it is not.

        Args:
            asked: Which drafters are asked, of one arm `[n, K, D]` or of several `[n, K, A, D]`.
        """
        remaining = self.texts.remaining[self.row][..., None]
        missed = backlogs(self.context[..., None], self._last_used, remaining)
        axes = tuple(range(2, asked.ndim - 1))
        return np.asarray(np.expand_dims(missed, axes) * asked)

    def preview(self, arms: Ints, caught_up: bool = False) -> tuple[Ints, Floats]:
        """Tokens that a round would commit `[n, K]` and its seconds `[n]`; nothing changes.

        Args:
            arms: See `step`.
            caught_up: As if no drafter had missed anything.
        """
        deciding = self.deciding
        facts = self._facts(np.where(deciding, arms, 0), deciding)
        read = self._prompt_rows(deciding)
        began = (read > 0) & (read == self.unread)
        draft, verify = self._seconds(facts, arms, deciding, read, caught_up)
        return np.where(began, 1, facts.committed), draft + verify

    def round_seconds(self, arms: Ints, caught_up: bool = False) -> Floats:
        """What a round would take `[n]`; see `preview`."""
        return self.preview(arms, caught_up)[1]

    def step(self, arms: Ints) -> ServedRound:
        """Plays a round of every server.

        Args:
            arms: Index of an arm for each place `[n, K]`; read for those who decide.
        """
        number, deciding, context = self.number.copy(), self.deciding, self.context
        arms = np.where(deciding, arms, 0)
        facts = self._facts(arms, deciding)
        read = self._prompt_rows(deciding)
        draft, verify = self._seconds(facts, arms, deciding, read)
        self.clock = self.clock + draft + verify
        self.unread = self.unread - read
        began = (read > 0) & (self.unread == 0)
        self._remember(arms, facts, context, deciding)
        self.row = self.row + facts.committed
        finished = deciding & (self.row == self.texts.last[self.text])
        self._note(self.requests.first_token, number, began)
        self._note(self.requests.end, number, finished)
        self.number = np.where(finished, -1, number)
        before = self.clock
        self._admit()
        committed = facts.committed + began
        rows = committed * self.settings.copies, facts.drafted, facts.verified, read
        idle = self.clock - before
        return ServedRound(number, deciding, arms, *rows, began, finished, draft, verify, idle)

    def _facts(self, arms: Ints, deciding: Mask) -> RowFacts:
        """What the chosen arms do; nothing in places that do not decide."""
        return self.texts.facts(self.row, arms).where(deciding)

    def _seconds(
        self,
        facts: RowFacts,
        arms: Ints,
        deciding: Mask,
        read: Ints,
        caught_up: bool = False,
    ) -> tuple[Floats, Floats]:
        """Time of drafting and of the pass `[n]` each."""
        alone = np.where(deciding, self.texts.alone[self.row, arms], 0.0)
        rows = (facts.drafted + deciding + read).sum(-1)
        return seconds_of(self, facts, alone, deciding | (read > 0), rows, caught_up)

    def _prompt_rows(self, deciding: Mask) -> Ints:
        """Rows of prompts in the next pass `[n, K]`: who came first is read first."""
        unread = np.where(self.active, self.unread, 0)
        if not unread.any():
            return unread
        most = self.settings.prompt_rows, self.settings.prompt_rows_alone
        room = np.where(deciding.any(-1), *most)[:, None]
        order = self.number.argsort(-1)
        wanted = np.take_along_axis(unread, order, -1)
        given = np.clip(room - (wanted.cumsum(-1) - wanted), 0, wanted)
        read = np.empty_like(unread)
        np.put_along_axis(read, order, given, -1)
        return read

    def _remember(self, arms: Ints, facts: RowFacts, context: Ints, deciding: Mask) -> None:
        np.copyto(self._last_used, context[..., None], where=facts.asked)
        drafters = (arms.size, len(self.texts.drafters))
        self.memory.update(
            arms.ravel(),
            facts.committed.ravel(),
            context.ravel(),
            facts.asked.reshape(drafters),
            facts.verified.reshape(drafters),
            deciding.ravel(),
        )
        made = facts.steps.reshape(drafters), facts.verified.reshape(drafters)
        self.accepted.update(facts.committed.ravel(), *made)

    def _time(self, times: Floats) -> Floats:
        """A time of the request in each place `[n, K]`; of the first one in empty places."""
        return np.take_along_axis(times, np.maximum(self.number, 0), -1)

    def _note(self, times: Floats, number: Ints, where: Mask) -> None:
        """Writes the time of some requests' events down."""
        server, place = np.nonzero(where)
        times[server, number[server, place]] = self.clock[server]

    def _admit(self) -> None:
        """Moves idle servers on to the next request, and lets requests in where there is room."""
        next_one = self.requests.next_arrival()
        idle = ~self.active.any(-1) & np.isfinite(next_one)
        self.clock = np.where(idle, np.maximum(self.clock, next_one), self.clock)
        rank = (~self.active).cumsum(-1)
        enters = ~self.active & (rank <= self.waiting[:, None])
        if not enters.any():
            return
        server, place = np.nonzero(enters)
        number = (self.requests.head[:, None] + rank - 1)[enters]
        text = self.requests.text[server, number]
        self.number[server, place], self.text[server, place] = number, text
        self.row[server, place] = self.texts.first[text]
        self.unread[server, place] = self.texts.prompt[text]
        self._last_used[server, place] = self.texts.lags - 1
        self.memory.forget(server * self.shape[1] + place)
        self.accepted.forget(server * self.shape[1] + place)
        self.requests.head = self.requests.head + enters.sum(-1)
