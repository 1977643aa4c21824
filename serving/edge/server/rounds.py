"""The server's rounds: plan, tell, collect drafts, verify all that are there in one pass.

    admit newcomers -> observe, plan -> tell verdicts and turns -> wait for drafts -> one pass

A round waits for the slowest device up to `Limits.round_seconds`; whoever is late goes on drafting
and is in the next one. Everything here runs in one event loop, and what computes (prompts, plans,
passes) in one thread beside it, so that connections live while the target works. Streams put
drafts and departures where `run` finds them; only `run` touches cell and sessions.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.decoding.round import RoundRecord
from draftgym.decoding.session import Session
from draftgym.envs.cell.devices import Server
from draftgym.envs.cell.state import CellState
from draftgym.envs.scheduler.planners import CellPlanner
from draftgym.policies.multispin.problem import Plan
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.protocol import Limits, Refused
from draftgym.serving.edge.rules import server_rule
from draftgym.serving.edge.server.cell import WireCell
from draftgym.serving.edge.server.clock import Clock, SystemClock
from draftgym.serving.edge.server.member import Asked, Member
from draftgym.serving.edge.server.totals import Totals
from draftgym.serving.edge.server.verifying import settle, take_correction, take_draft, verify
from draftgym.serving.edge.server.witness import Witness, round_facts

T = TypeVar("T")
ENDINGS = {"stop": wire.STOP, "length": wire.LENGTH}


@dataclass(eq=False)
class EdgeRounds:
    """Plays the rounds of connected devices.

    Args:
        target: What writes.
        cell: What is known of the devices.
        make_planner: Makes who plans.
        limits: What devices may do.
        clock: Where time comes from.
        payload: What drafts of sampled texts carry: `tokens`, `scalar` or `truncated`.
        kept: Probabilities of a truncated distribution at most.
        witnesses: Who is told of plans and rounds.
        paced: A server whose passes these are to take at least; None for this host's own time.

    Attributes:
        members: Devices that are connected and have opened a text.
        totals: What has been done.
    """

    target: Target
    cell: WireCell
    make_planner: Callable[[CellState], CellPlanner]
    limits: Limits = field(default_factory=Limits)
    clock: Clock = field(default_factory=SystemClock)
    payload: str = "tokens"
    kept: int = 1024
    witnesses: Sequence[Witness] = ()
    paced: Server | None = None
    members: list[Member] = field(default_factory=list, init=False)
    totals: Totals = field(default_factory=Totals, init=False)

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()
        self._opening: list[Member] = []
        self._computing = ThreadPoolExecutor(1, "edge")
        self._planner = self.make_planner(self.cell)
        self._start = self.clock.now()

    def open(self, member: Member, asked: Asked) -> None:
        """A device asks for a text, its first or its next.

        Raises:
            Refused: It has one already, there is no room, or the text is another device's.
        """
        if member.writing or member in self._opening:
            raise Refused("INVALID_ARGUMENT", "a text was opened before the last one had ended")
        for other in dict.fromkeys([*self.members, *self._opening]):
            if other is member or other.asked is None or other.asked.session != asked.session:
                continue
            if not asked.continues(other.asked):
                raise Refused("ALREADY_EXISTS", "another text has this session's name")
            other.outbox.refuse(Refused("ABORTED", "the session goes on over another connection"))
            self.leave(other)
        waiting = sum(one.place is None for one in self._opening)
        if member.place is None and waiting >= self.limits.waiting + self._free():
            raise Refused("RESOURCE_EXHAUSTED", "every place is taken; try again later")
        member.asked, member.waited_since = asked, None
        self._opening.append(member)
        self._changed.set()

    def receive(self, member: Member, draft: Any) -> None:
        """A device's draft has come; see `take_draft`."""
        take_draft(member, draft, self.payload, self.target.vocab_size, self.kept)
        member.arrived_at = self._now()
        self._changed.set()

    def correct(self, member: Member, correction: Any) -> None:
        """The distribution of a rejected token has come; see `take_correction`."""
        take_correction(member, correction, self.target.vocab_size, self.kept)
        self._changed.set()

    def leave(self, member: Member) -> None:
        """A device's stream has ended."""
        member.gone = True
        self._changed.set()

    async def run(self) -> None:
        """Plays rounds until it is cancelled."""
        try:
            while True:
                self._dismiss()
                await self._admit()
                if not any(one.writing for one in self.members):
                    await self._change()
                    continue
                try:
                    await self._round()
                except Exception as error:  # whatever it was, others must be able to come
                    self._give_up(error)
        finally:
            self._computing.shutdown(wait=True, cancel_futures=True)

    async def watch(self) -> None:
        """Ends the streams of devices that keep the server waiting too long."""
        while True:
            await self.clock.sleep(self.limits.idle_seconds / 4)
            for one in list(self.members):
                since = one.waited_since
                if since is not None and self.clock.now() - since > self.limits.idle_seconds:
                    self._refuse(one, Refused("DEADLINE_EXCEEDED", "nothing came for too long"))

    async def _round(self) -> None:
        began = self._now()
        plan = await self._compute(partial(self._plan, began))
        planning = self._now() - began
        self._tell(plan, began)
        await self._collect()
        self._dismiss()
        if here := [one for one in self._there() if one.verified is None]:
            until = self._now() + self._pass_seconds(here)
            await self._compute(partial(verify, here))
            if (left := until - self._now()) > 0:
                await self.clock.sleep(left)
            if self._ask([one for one in here if one.rejected is not None]):
                await self._collect(corrections=True)
            self._dismiss()
        # What has come during the pass is in the next round.
        if done := [one for one in self._there() if one.verified is not None]:
            records = await self._compute(partial(settle, done))
            facts = round_facts(self.cell, done, records, (began, planning, self._now()))
            self._commit(done, records, began)
            for witness in self.witnesses:
                witness.played(facts)

    def _pass_seconds(self, members: Sequence[Member]) -> float:
        """What a pass over the drafts of these is to take at least."""
        if self.paced is None:
            return 0.0
        drafted, present = np.zeros(self.cell.shape, np.int64), np.zeros(self.cell.shape, bool)
        for one in members:
            drafted[0, one.place], present[0, one.place] = len(one.arrived or []), True
        return float(self.paced.seconds(drafted, self.cell.users.context, present)[0])

    def _there(self) -> list[Member]:
        """Those of whom nothing is waited for."""
        return [one for one in self.members if one.arrived is not None]

    def _ask(self, rejected: Sequence[Member]) -> bool:
        """Asks for the distributions of rejected tokens; whether there are any.

        The band is theirs alone meanwhile, as in `Cell`.
        """
        for one in rejected:
            one.arrived, one.waited_since = None, self.clock.now()
            told = wire.Rejected(accepted=one.rejected, share=1 / len(rejected))
            try:
                one.outbox.put(wire.FromServer(rejected=told))
            except Refused as refused:
                self._refuse(one, refused)
        if rejected:
            self._divide(dict.fromkeys(rejected, 1 / len(rejected)))
        return bool(rejected)

    def _plan(self, now: float) -> Plan:
        """Observes and plans, when everybody's newest reports are in."""
        room = np.zeros(self.cell.shape, np.int64)
        for one in self.members:
            if one.place is not None and one.session is not None:
                self.cell.report(one.place, one.snr_db, one.token_seconds)
                room[0, one.place] = one.session.remaining - 1
        self._planner.learn(self.cell.look(now))
        plan = self._planner.plan()
        lengths = np.minimum(plan.lengths, room)
        # Rules' plans say nothing of uploads under way, which need their part of the band.
        forgotten = (self.cell.sending & (plan.shares <= 0)).any()
        return self.cell.best_plan(lengths) if forgotten else Plan(lengths, plan.shares)

    def _tell(self, plan: Plan, now: float) -> None:
        """Everybody who decides gets its verdict and its turn, the others their new share."""
        deciding = self.cell.deciding[0].copy()
        drafts = self.cell.begin(plan, now)[0]
        for one in [one for one in self.members if one.writing]:
            place, share = one.place, float(plan.shares[0, one.place])
            try:
                if not deciding[place]:
                    one.outbox.put(wire.FromServer(share=wire.Share(share=share)))
                    continue
                length = int(plan.lengths[0, place]) if drafts[place] else 0
                one.tell((length, share))
                one.length, one.arrived = length, None if length else []
                one.arrived_at = self._now()
                one.waited_since = self.clock.now() if length else None
            except Refused as refused:
                self._refuse(one, refused)
        self._divide({one: float(plan.shares[0, one.place]) for one in self.members})

    def _divide(self, shares: Mapping[Member, float]) -> None:
        """Witnesses are told how the band is divided among those who write."""
        told: defaultdict[str, float] = defaultdict(float)  # several may have an address
        for one in self.members:
            if one.writing and not one.gone:
                told[one.peer] += shares.get(one, 0.0)
        for witness in self.witnesses:
            witness.planned(told)

    async def _collect(self, corrections: bool = False) -> None:
        """Waits for all drafts, or until the round is over and somebody is there.

        Args:
            corrections: Whether only distributions of rejected tokens are waited for: the pass is
                over, and drafts that come now are in the next round.
        """
        over = asyncio.ensure_future(self.clock.sleep(self.limits.round_seconds))
        try:
            while True:
                writing = [one for one in self.members if one.writing and not one.gone]
                expected = [one for one in writing if one.rejected is not None or not corrections]
                missing = [one for one in expected if one.arrived is None]
                if not missing:
                    return
                if over.done() and (len(missing) < len(writing) or self._may_enter()):
                    self.totals.late += len(missing)
                    return
                change = asyncio.ensure_future(self._change())
                waited = {change} if over.done() else {change, over}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
        finally:
            over.cancel()

    def _commit(
        self, members: Sequence[Member], records: Sequence[RoundRecord], began: float
    ) -> None:
        """The cell learns what happened; texts that are done are told so at once."""
        taken = np.zeros(self.cell.shape, bool)
        drafted, committed = np.zeros((2, *self.cell.shape), np.int64)
        for one, record in zip(members, records, strict=True):
            taken[0, one.place] = True
            drafted[0, one.place] = len(record.drafted)
            committed[0, one.place] = len(record.committed)
            one.take(record.accepted, record.committed[record.accepted :])
        now = self._now()
        self.cell.end(taken, drafted, committed, now, records[0].times.verify)
        self.totals.add(now - began, records)
        for one in members:
            self._end_if_done(one)

    def _end_if_done(self, member: Member) -> None:
        session = member.session
        if session is None or not session.finished:
            return
        if member.place is not None:
            self.cell.leave(member.place)
        member.session, member.length = None, 0
        member.waited_since = self.clock.now()
        self.totals.texts += 1
        try:
            member.tell(None, ENDINGS[session.finish_reason])
        except Refused as refused:
            self._refuse(member, refused)

    async def _admit(self) -> None:
        """Reads the prompts of those who have opened a text, as far as there are places."""
        for member in list(self._opening):
            place = self._place_for(member)
            if member.gone or place is None:
                continue
            asked = member.asked
            assert asked is not None  # `open` has set it
            member.place = place
            if member not in self.members:
                self.members.append(member)
            try:
                session = await self._compute(partial(self._begin, asked))
            except Exception as error:
                self._refuse(member, _told(error))
                continue
            finally:
                self._opening.remove(member)  # until now, no other text may be opened
            member.session, member.position = session, len(asked.written)
            member.take(0, session.new_tokens)
            if session.finished:
                self._end_if_done(member)
                continue
            self.cell.report(place, member.snr_db, member.token_seconds)
            self.cell.enter(place, session, asked.drafter, asked.category, member.newcomer)
            member.newcomer = False

    @torch.inference_mode()
    def _begin(self, asked: Asked) -> Session:
        """A session behind its prompt's pass; what was written before is part of its prompt."""
        size = self.target.vocab_size
        rule = server_rule(self.payload, asked.temperature, asked.seed, size)
        known = torch.tensor([*asked.prompt, *asked.written])
        session = Session(self.target, known, rule, asked.max_new_tokens - len(asked.written), {})
        session.prefill()
        return session

    def _place_for(self, member: Member) -> int | None:
        if member.place is not None:
            return member.place
        taken = {one.place for one in self.members}
        free = [place for place in range(self.cell.shape[1]) if place not in taken]
        return free[0] if free else None

    def _free(self) -> int:
        return self.cell.shape[1] - len([one for one in self.members if not one.gone])

    def _may_enter(self) -> bool:
        return any(self._place_for(one) is not None for one in self._opening)

    def _dismiss(self) -> None:
        """Forgets those whose streams have ended."""
        for one in [one for one in self.members if one.gone]:
            if one.writing and one.place is not None:
                self.cell.leave(one.place)
            one.session = None
        self.members = [one for one in self.members if not one.gone]
        self._opening = [one for one in self._opening if not one.gone]

    def _refuse(self, member: Member, refused: Refused) -> None:
        member.outbox.refuse(refused)
        self.leave(member)

    def _give_up(self, error: Exception) -> None:
        """A round failed: its texts end here, and devices that come back go on with them."""
        why = "the server's log says why"  # an accelerator's errors are longer than headers may be
        if isinstance(error, DraftgymError):
            why = error.problem
        else:
            traceback.print_exception(error, file=sys.stderr)
        for one in self.members:
            if one.writing:
                self._refuse(one, Refused("UNAVAILABLE", f"a round failed: {why}"))

    def _now(self) -> float:
        """Seconds on the cell's clock."""
        return self.clock.now() - self._start

    async def _change(self) -> None:
        """Waits until something has come from a stream."""
        await self._changed.wait()
        self._changed.clear()

    async def _compute(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._computing, work)


def _told(error: Exception) -> Refused:
    """What a device is told of a text that cannot be begun."""
    if isinstance(error, DraftgymError):
        return Refused("INVALID_ARGUMENT", "; ".join(filter(None, (error.problem, error.remedy))))
    traceback.print_exception(error, file=sys.stderr)
    return Refused("INTERNAL", "the server could not begin this text; its log says why")
