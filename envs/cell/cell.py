"""Rounds of many users who share an uplink and a target, many cells at once, from traces.

    agent: draft lengths (and shares of the band)
      -> devices draft and upload, side by side      devices, uploads, draftgym.envs.radio
      -> the server verifies whoever is there        uploads.next_batch
      -> texts go on as they really did              texts
      -> users come and go, channels change          users, draftgym.envs.radio.channel

The environment is this with n = 1, training is this with many cells. Synchronous rounds are the
papers'. With a window (asynchronous batching, ours) a step is a batch: only who is not drafting is
told what to draft next, the others go on. The band is divided anew at every step, among all whose
upload is still to be done; what they have sent counts.

What a prompt costs before its first token is left out, as in the papers, unless
`CellSettings.prompt_token_seconds` tells; of the downlink, `CellSettings.latency` is all there is.
Notation: n = cells, K = places of users.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.state import CellState
from draftgym.envs.cell.texts import Ints, Mask, TextTable
from draftgym.envs.cell.uploads import next_batch, upload_seconds
from draftgym.envs.radio.channel import Generators, uniform
from draftgym.policies.multispin.problem import Plan
from draftgym.policies.multispin.uplink import Floats


@dataclass(frozen=True)
class CellTime:
    """Where the time of a step went, seconds `[n]` each.

    What comes before verification is of the user that came last: a batch waits for it.

    Attributes:
        draft: Its drafting.
        upload: Its upload.
        wait: For the window to close, and `CellSettings.overhead`.
        verify: The pass.
        reply: Uploads of distributions where a token was rejected (2608.29618), the longest one.
        prompts: Reading the prompts of texts that begin behind this step.
    """

    draft: Floats
    upload: Floats
    wait: Floats
    verify: Floats
    reply: Floats
    prompts: Floats

    @property
    def total(self) -> Floats:
        """All pieces together."""
        return self.draft + self.upload + self.wait + self.verify + self.reply + self.prompts


@dataclass(frozen=True)
class CellRound:
    """A step of n cells with K places.

    Attributes:
        present: Who was there `[n, K]`.
        taken: Who was verified `[n, K]`.
        drafted: Tokens verified of each `[n, K]`; 0 of the others.
        committed: Tokens committed `[n, K]`; 0 of who was not verified.
        rows: Rows of the table at which these rounds began `[n, K]`.
        arms: Whose chains these are, by index `[n, K]`.
        shares: Parts of the band `[n, K]`.
        time: Where the time went.
        idle: Seconds afterwards in which nobody was there `[n]`; no agent is to blame for them.
        finished: Whose text was done `[n, K]`.
        began: Who has a new text, newcomers included `[n, K]`.
        newcomers: Who is new in its place `[n, K]`.
    """

    present: Mask
    taken: Mask
    drafted: Ints
    committed: Ints
    rows: Ints
    arms: Ints
    shares: Floats
    time: CellTime
    idle: Floats
    finished: Mask
    began: Mask
    newcomers: Mask


class Cell(CellState):
    """n cells, stepped together.

    Args:
        table: Traced texts (`draftgym.envs.cell.texts`), or texts that are being written
            (`draftgym.envs.cell.live`).
        settings: What the cells are made of.
        count: n.

    Attributes:
        channel: Their channels.

    Raises:
        DraftgymError: Drafts are to be longer than was traced, or a mean belongs to no task.
    """

    table: TextTable

    def __init__(self, table: TextTable, settings: CellSettings, count: int = 1) -> None:
        super().__init__(table, settings, count)
        self.server = settings.edge.server
        self.channel, self.report = settings.make_channel(count), settings.make_report()

    def reset(self, rng: Generators, rows: Mask | None = None) -> None:
        """Begins anew with new users everywhere.

        Args:
            rng: One generator, or one per cell; later steps draw from it as well.
            rows: Which cells `[n]`; None for all.
        """
        self.rng = rng
        rows = np.ones(self.count, bool) if rows is None else rows
        where = np.broadcast_to(rows[:, None], self.shape)
        self.users.clear(where)
        self.clock = np.where(rows, 0.0, self.clock)
        self.uploads.free(where, np.zeros(self.shape))
        self.users.settle(rng, where & self._taken_places(rng, rows))
        self.channel.reset(rng, where)
        self.reported = self.report.take(rng, self.channel.snr, where, rows)

    def _taken_places(self, rng: Generators, rows: Mask) -> Mask:
        """The places of a cell that are ever taken `[n, K]`: the first few, where few come."""
        places, fewest = self.settings.users, self.settings.fewest
        if fewest is None:
            return np.ones(self.shape, bool)
        chance = uniform(rng, (self.count, 1), rows)
        return np.asarray(np.arange(places) < fewest + np.floor(chance * (places - fewest + 1)))

    def snapshot(self) -> dict[str, Any]:
        """Where replayed cells stand, to be kept; texts are left out."""
        names = ("rng", "clock", "channel", "report", "reported", "uploads")
        users = {name: value for name, value in vars(self.users).items() if name != "table"}
        return {name: getattr(self, name) for name in names} | {"users": users}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Puts the cells where these of the same texts and settings stood."""
        told = dict(snapshot)
        vars(self.users).update(told.pop("users"))
        vars(self).update(told)

    @property
    def acceptable(self) -> Ints:
        """Tokens of everybody's longest draft that the target would accept now `[n, K]`.

        Nobody in the cell knows; it serves those who learn from it afterwards, and oracles.
        """
        users, longest = self.users, np.full(self.shape, self.longest)
        drafted = self.table.drafted(users.arm, users.row, longest)
        return self.table.committed(users.arm, users.row, drafted) - 1

    def step(self, plan: Plan) -> CellRound:
        """Plays a round (or a batch) of every cell.

        Args:
            plan: Lengths `[n, K]`, read for those who decide, and shares of the band, read for them
                and for those still `sending`. Who decides and has no share drafts nothing.
                `in_turn` needs synchronous rounds.

        Raises:
            DraftgymError: An impossible length or share, or an upload that would never end.
        """
        self._check(plan)
        present, rows, arms = self.users.active, self.users.row, self.users.arm
        self._send_off(plan)
        taken, committed, time, later = self._in_turn() if plan.in_turn else self._together()
        drafted = np.where(taken, self.uploads.sent, 0)
        self.users.learn(taken, drafted, committed, time.total)
        before = self.clock
        after = before + time.total
        self.clock = after.copy()
        finished, began, new = self.users.turn_over(self.rng, taken, self.clock)
        time = replace(time, prompts=self._reading(began))
        after, self.clock = after + time.prompts, self.clock + time.prompts
        self.uploads.free(taken | new, np.where(new, 0.0, later) + self.clock[:, None])
        self.channel.advance(self.rng, self.clock - before)
        if new.any():
            self.channel.reset(self.rng, new)
        self.reported = self.report.take(self.rng, self.channel.snr, new)
        counts, idle = (drafted, committed, rows, arms), self.clock - after
        shares = self.uploads.share
        return CellRound(present, taken, *counts, shares, time, idle, finished, began, new)

    def preview(self, plan: Plan) -> tuple[Ints, Floats]:
        """What a step by a plan would commit `[n, K]` and how long it would take `[n]`.

        Nothing changes: the same acceptance and channels await whatever plan is played.

        Args:
            plan: See `step`; not in turn.

        Raises:
            DraftgymError: The texts are being written: what is to come is not known.
        """
        if not self.table.foreseen:
            raise DraftgymError(
                "live users cannot show what a plan would commit", "preview replayed cells"
            )
        kept, self.uploads = self.uploads, copy.copy(self.uploads)  # it replaces its arrays
        try:
            self._send_off(plan)
            _, committed, time, _ = self._together()
        finally:
            self.uploads = kept
        return committed, time.total

    def _check(self, plan: Plan) -> None:
        lengths, shares = np.asarray(plan.lengths), np.asarray(plan.shares)
        if lengths.shape != self.shape or shares.shape != self.shape:
            raise DraftgymError(
                f"a plan of shape {lengths.shape} and {shares.shape}", f"give {self.shape}"
            )
        if lengths.min() < 0 or lengths.max() > self.longest:
            raise DraftgymError(
                f"draft lengths from {lengths.min()} to {lengths.max()}",
                f"draft 0 to {self.longest} tokens",
            )
        most = 1.0 if plan.in_turn else shares.sum(-1).max()
        if not (np.isfinite(shares).all() and shares.min() >= 0 and most <= 1 + 1e-6):
            raise DraftgymError(
                "shares of the band that are negative or more than all of it",
                "give shares with sum 1",
            )
        if plan.in_turn and self.settings.window is not None:
            raise DraftgymError("turns within a window", "take turns in synchronous rounds")

    def _send_off(self, plan: Plan) -> None:
        """Those who decide begin to draft; the others go on with the shares they have now."""
        users, starts = self.users, self.deciding
        planned = np.where(starts & (plan.shares > 0), plan.lengths, 0)
        drafted = self.table.drafted(users.arm, users.row, planned, starts)
        bits = self.payload.draft_bits(drafted, planned > 0)
        begun = np.maximum(drafted, 1) if self.settings.confidence else drafted
        begun = begun if plan.unsent is None else begun + plan.unsent
        seconds = self.draft_seconds(begun, planned > 0)
        self.uploads.start(starts, planned, drafted, seconds, bits, self.clock)
        rate = self.band.rate(self.channel.snr, plan.shares)
        self.uploads.divide(plan.shares, rate, self.clock)
        never = self.uploads.in_flight & np.isinf(self.uploads.arrival)
        others = self.uploads.in_flight & ~never
        # Within a window a user can be left to wait for a better channel, but not all of them.
        stuck = never.any(-1) & ((self.settings.window is None) | ~others.any(-1))
        if stuck.any():
            raise DraftgymError(
                "an upload over a channel without any signal would never end",
                "set a deadline in the cell's settings, or use channels that never go silent",
            )

    def _together(self) -> tuple[Mask, Ints, CellTime, Floats]:
        """One pass over whoever is there; also when each may go on, counted from its end."""
        window = self.settings.window
        arrival = self.uploads.arrival
        expected = np.where(self.uploads.in_flight, arrival, np.inf)
        start, taken = next_batch(expected, np.inf if window is None else window, self.clock)
        committed = self._committed(taken)
        reply = self._replies(taken, committed)
        last = np.where(taken, arrival, -np.inf).argmax(-1)[:, None]
        came, ready = (
            np.take_along_axis(of_all, last, -1)[:, 0] for of_all in (arrival, self.uploads.ready)
        )
        until = np.maximum(came, self.clock)
        upload = np.maximum(until - np.maximum(ready, self.clock), 0.0)
        verify = self.server.seconds(self.uploads.sent, self.users.context, taken)
        nothing = np.zeros_like(reply)
        everybody, each = (reply, nothing) if window is None else (nothing, reply)
        draft, wait = until - self.clock - upload, start - until + self.settings.overhead
        time = CellTime(draft, upload, wait, verify, everybody.max(-1), np.zeros(self.count))
        return taken, committed, time, each

    def _in_turn(self) -> tuple[Mask, Ints, CellTime, Floats]:
        """A pass of each user's own, one after the other; see `_together`."""
        taken = self.users.active
        committed = self._committed(taken)
        alone = self.server.seconds(
            self.uploads.sent[..., None], self.users.context[..., None], taken[..., None]
        )
        begin, arrival = self.uploads.begin, self.uploads.arrival
        ready = np.minimum(self.uploads.ready, arrival)
        time = CellTime(
            draft=np.where(taken, ready - begin, 0.0).sum(-1),
            upload=np.where(taken, arrival - ready, 0.0).sum(-1),
            wait=np.full(self.count, self.settings.overhead),
            verify=alone.sum(-1),
            reply=self._replies(taken, committed, alone=True).sum(-1),
            prompts=np.zeros(self.count),
        )
        return taken, committed, time, np.zeros(self.shape)

    def _committed(self, taken: Mask) -> Ints:
        users = self.users
        return self.table.committed(users.arm, users.row, self.uploads.sent, taken)

    def _reading(self, began: Mask) -> Floats:
        """Seconds of reading the prompts of texts that begin, one after the other `[n]`."""
        each = self.settings.prompt_token_seconds
        if not each or not began.any():
            return np.zeros(self.count)
        nothing = np.zeros((*self.shape, 1), np.int64)
        alone = self.server.seconds(nothing, nothing, began[..., None])
        return np.asarray((alone + began * each * self.users.context).sum(-1))

    def _replies(self, taken: Mask, committed: Ints, alone: bool = False) -> Floats:
        """Seconds of uploading a distribution where a token was rejected (2608.29618) `[n, K]`.

        The band is divided equally among those who must; in asynchronous rounds each has its K-th
        part. After the deadline, the server's own distribution is sent down instead.
        """
        if not self.payload.correction_bits:
            return np.zeros(self.shape)
        rejected = taken & (committed <= self.uploads.sent)
        bits = np.where(rejected, self.payload.correction_bits, 0)
        among = np.maximum(rejected.sum(-1, keepdims=True), 1)
        if alone or self.settings.window is not None:
            among = np.full_like(among, 1 if alone else self.settings.users)
        seconds = upload_seconds(bits, self.band.rate(self.channel.snr, rejected / among))
        most = np.inf if self.settings.deadline is None else self.settings.deadline
        return np.minimum(seconds, most)
