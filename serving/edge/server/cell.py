"""The cell of connected devices: an environment's state, told what really happened.

`draftgym.envs.cell.cell.Cell` plays a round by models of radio, devices and server. Here time is
the clock's, acceptance the target's, and channels and speeds are what devices report. Everything
that a scheduler reads (`draftgym.envs.cell.state.CellState`) is kept by the same code.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from draftgym.decoding.session import Session
from draftgym.envs.cell.cell import CellRound, CellTime
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.state import CellState
from draftgym.envs.cell.texts import Ints, Mask
from draftgym.envs.radio.radio import from_db
from draftgym.policies.multispin.problem import Plan
from draftgym.serving.edge.server.table import WireTable


class WireCell(CellState):
    """One cell whose users are devices on a network.

    A round is `look`, `begin`, then `end`; in between and before, devices `enter` and `leave`.

    Args:
        table: Their texts.
        settings: The band, the server's cost, places, the longest draft.
    """

    table: WireTable

    def __init__(self, table: WireTable, settings: CellSettings) -> None:
        super().__init__(table, settings)
        self.reported = np.ones(self.shape)
        self._began, self._newcomers = np.zeros((2, *self.shape), bool)
        self._played = self._quiet()

    def enter(
        self, place: int, session: Session, drafter: str, category: str, newcomer: bool = True
    ) -> None:
        """A device is at the first token of a text; `report` must have been called.

        Args:
            place: Where it is.
            session: The text.
            drafter: What drafts.
            category: What kind of text it is.
            newcomer: Whether nothing is known of the device from texts before.
        """
        self.table.begin(place, session)
        where, fresh = self._only(place), self._only(place) & newcomer
        arm = np.full(self.shape, self.table.arm_of(drafter))
        kind = np.full(self.shape, self.table.category_of(category))
        self.users.seat(where, arm, kind, self.users.token_seconds, fresh)
        self.uploads.free(where, np.full(self.shape, self.clock[0]))
        self._began, self._newcomers = self._began | where, self._newcomers | fresh

    def leave(self, place: int) -> None:
        """A text is done, or its device has gone."""
        where = self._only(place)
        self.users.clear(where)
        self.uploads.free(where, np.zeros(self.shape))
        self.table.forget(place)
        self._began, self._newcomers = self._began & ~where, self._newcomers & ~where

    def report(self, place: int, snr_db: float, token_seconds: float) -> None:
        """A device tells of its channel and its speed."""
        where = self._only(place)
        self.reported = np.where(where, from_db(snr_db), self.reported)
        self.users.token_seconds = np.where(where, token_seconds, self.users.token_seconds)

    def look(self, now: float) -> CellRound:
        """Before a plan: what the last round did, and who has entered since.

        What should be there by now and is not has all of its way before it, for all that is known.

        Args:
            now: Seconds on the cell's clock.
        """
        self.clock = np.array([now])
        late = self.uploads.in_flight & (self.uploads.arrival <= now)
        self.uploads.free(late, np.full(self.shape, now))
        planned, nothing = self.uploads.planned, np.zeros(self.shape)
        bits = self.payload.draft_bits(planned)
        self.uploads.start(late, planned, planned, nothing, bits, self.clock)
        played = replace(self._played, began=self._began, newcomers=self._newcomers)
        self._began, self._newcomers = np.zeros((2, *self.shape), bool)
        self._played = self._quiet()
        return played

    def begin(self, plan: Plan, now: float) -> Mask:
        """Those who decide begin to draft, as far as anybody can say when they will be done.

        Args:
            plan: Lengths and shares `[1, K]`, as `Cell.step` reads them.
            now: Seconds on the cell's clock; as it was for the plan.

        Returns:
            Who drafts something `[1, K]`; of those who decide, the others are there at once.
        """
        starts = self.deciding
        lengths = np.where(starts & (plan.shares > 0), plan.lengths, 0)
        self.uploads.free(starts, np.full(self.shape, now))
        seconds, bits = self.draft_seconds(lengths, lengths > 0), self.payload.draft_bits(lengths)
        self.uploads.start(starts, lengths, lengths, seconds, bits, self.clock)
        rate = self.band.rate(self.reported, plan.shares)
        self.uploads.divide(plan.shares, rate, self.clock)
        return np.asarray(starts & (lengths > 0))

    def end(self, taken: Mask, drafted: Ints, committed: Ints, now: float, verify: float) -> None:
        """A round has ended; the texts of those that were verified have gone on.

        Args:
            taken: Who was verified `[1, K]`.
            drafted: Tokens that were verified of each `[1, K]`.
            committed: Tokens that were committed of each `[1, K]`.
            now: Seconds on the cell's clock.
            verify: Seconds of it that the pass took.
        """
        present, rows, arms = self.users.active, self.users.row, self.users.arm
        total = np.array([now]) - self.clock
        work = np.where(taken, drafted * self.users.token_seconds, 0.0).max(-1)
        waited = np.maximum(total - verify, 0.0)
        nothing = np.zeros(1)
        draft = np.minimum(work, waited)
        time = CellTime(draft, waited - draft, nothing, total - waited, nothing, nothing)
        self.users.learn(taken, drafted, committed, total)
        for place in np.flatnonzero(taken[0]).tolist():
            self.table.look(place)
        self.clock = np.array([now])
        self.uploads.free(taken, np.full(self.shape, now))
        finished = taken & self.table.ended(self.users.text, self.users.row)
        counts, shares = (drafted, committed, rows, arms), self.uploads.share
        none = np.zeros(self.shape, bool)
        facts = *counts, shares, time, nothing, finished, none, none
        self._played = CellRound(present, taken, *facts)

    def _only(self, place: int) -> Mask:
        where = np.zeros(self.shape, bool)
        where[0, place] = True
        return where

    def _quiet(self) -> CellRound:
        """A round in which nothing happened."""
        none, zeros, still = np.zeros(self.shape, bool), np.zeros(self.shape, int), np.zeros(1)
        time = CellTime(*[still] * 6)
        present, row, arm = self.users.active, self.users.row, self.users.arm
        counts, shares = (zeros, zeros, row, arm), np.zeros(self.shape)
        return CellRound(present, none, *counts, shares, time, still, none, none, none)
