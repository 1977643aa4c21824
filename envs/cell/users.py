"""Who is in a cell: users that come and go, what they read, and what is known of their acceptance.

A user has a device with a drafter, and a category whose texts it reads one after the other. When a
text is done it begins the next one, or leaves; later another user takes its place. All arrays are
`[n, K]`: n cells with K places each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import Ints, Mask, TextFacts
from draftgym.envs.radio.channel import Generators, chosen, draw, uniform
from draftgym.policies.multispin.beliefs import beta_posterior, moving_average
from draftgym.policies.multispin.uplink import Floats

RECENT = 3
"""Rounds of each user that are remembered one by one."""


class Users:
    """The places of n cells.

    Args:
        table: What they read, and what their drafters do.
        settings: The cell.
        count: Cells, n.
        usual_speed: Tokens per second of a user without any draft.

    Attributes:
        active: Whose place is taken.
        arm, category, task: What drafts, what is read, and both as one index.
        text: Index of the text.
        row: Where the next round begins, a row of the table.
        token_seconds: Seconds per drafted token of the device.
        means: Mean acceptance of each task, as measured beforehand or in these texts.
        posterior: Belief about the acceptance of the text
            (`draftgym.policies.multispin.beliefs.beta_posterior`).
        average: Belief about the user across its texts (`moving_average`).
        recent: Drafted and accepted tokens of the last rounds, newest first `[n, K, RECENT, 2]`.
        tokens, seconds: What each user got since it came, and how long it has been there. Both
            begin as if it had been served for a while without drafts.
        returns_at: When somebody comes into an empty place; infinity where it is taken.

    Raises:
        DraftgymError: A mean belongs to no task.
    """

    def __init__(
        self,
        table: TextFacts,
        settings: CellSettings,
        count: int,
        usual_speed: float,
    ) -> None:
        shape = self.shape = count, settings.users
        self.table, self.means = table, _means(table, settings.means)
        self._leaving, self._absence = settings.leaving, settings.absence
        self._devices = [settings.device(arm.drafter) for arm in table.arms]
        self._head_start = 10.0 / usual_speed, 10.0  # seconds, tokens
        self.active = np.zeros(shape, bool)
        zeros = np.zeros(shape, np.int64)
        self.arm, self.category, self.task, self.text = zeros, zeros, zeros, zeros
        self.row, self._start, self._step, self._served = zeros, zeros, zeros, zeros
        self.token_seconds = np.zeros(shape)
        self.recent = np.zeros((*shape, RECENT, 2), np.int64)
        self.tokens, self.seconds = np.ones(shape), np.ones(shape)
        self.returns_at = np.full(shape, np.inf)
        means = self.means.tolist()
        self.posterior, self.average = beta_posterior(means), moving_average(means)
        for belief in (self.posterior, self.average):
            belief.begin(np.ones(shape, bool), self.task)

    @property
    def context(self) -> Ints:
        """Positions in the target's cache."""
        return np.asarray(self.table.context[self.row])

    @property
    def rates(self) -> Floats:
        """Tokens per second of each user since it came."""
        return self.tokens / self.seconds

    def clear(self, where: Mask) -> None:
        """Empties these places for good, unless somebody is settled there."""
        self.active = self.active & ~where
        self.returns_at = np.where(where, np.inf, self.returns_at)

    def settle(self, rng: Generators, where: Mask) -> None:
        """Puts a new user into each of these places."""
        where, rows = chosen(where, self.shape)
        drawn = uniform(rng, (*self.shape, 4), rows)
        arm = (drawn[..., 0] * len(self.table.arms)).astype(np.int64)
        category = (drawn[..., 1] * len(self.table.categories)).astype(np.int64)
        seconds = self.token_seconds
        for index, device in enumerate(self._devices):
            mine = where & (arm == index)
            touched = mine.any(-1)
            if touched.any():
                seconds = np.where(mine, draw(rng, self.shape, device.draw, touched), seconds)
        start = self.table.starts(category, drawn[..., 2])
        step = self.table.steps(category, drawn[..., 3])
        self._start = np.where(where, start, self._start)
        self._step = np.where(where, step, self._step)
        self.seat(where, arm, category, seconds)

    def seat(
        self,
        where: Mask,
        arm: Ints,
        category: Ints,
        token_seconds: Floats,
        newcomers: Mask | None = None,
    ) -> None:
        """Puts users into these places, each at a text.

        Args:
            where: Which places.
            arm: What drafts.
            category: What is read.
            token_seconds: Seconds per drafted token of the device.
            newcomers: Who of them was not there before and has no past; None for all.
        """
        fresh = where if newcomers is None else where & newcomers
        self.arm = np.where(where, arm, self.arm)
        self.category = np.where(where, category, self.category)
        self.task = self.table.task(self.arm, self.category)
        self.token_seconds = np.where(where, token_seconds, self.token_seconds)
        self._served = np.where(fresh, 0, self._served)
        self.active = self.active | where
        self.returns_at = np.where(where, np.inf, self.returns_at)
        self.recent[fresh] = 0
        self.seconds = np.where(fresh, self._head_start[0], self.seconds)
        self.tokens = np.where(fresh, self._head_start[1], self.tokens)
        self._open(where, fresh)

    def learn(self, taken: Mask, drafted: Ints, committed: Ints, seconds: Floats) -> None:
        """A round has ended: beliefs, rates and places in the texts.

        Args:
            taken: Who was verified.
            drafted: Tokens that were verified.
            committed: Tokens that were committed; 0 of who was not verified.
            seconds: How long it took `[n]`.
        """
        judged = np.where(taken, drafted, 0)
        accepted = np.where(taken, committed - 1, 0)
        for belief in (self.posterior, self.average):
            belief.update(judged, accepted)
        latest = np.stack([judged, accepted], axis=-1)[..., None, :]
        shifted = np.concatenate([latest, self.recent[..., :-1, :]], axis=-2)
        self.recent = np.where(taken[..., None, None], shifted, self.recent)
        self.tokens = self.tokens + committed
        self.seconds = self.seconds + np.where(self.active, seconds[:, None], 0.0)
        self.row = self.row + committed

    def turn_over(self, rng: Generators, taken: Mask, clock: Floats) -> tuple[Mask, Mask, Mask]:
        """Texts end, users leave and come.

        Args:
            rng: See `draftgym.envs.radio.channel.Generators`.
            taken: Who was verified in this round.
            clock: Time after it `[n]`; where nobody is left it is moved on to the next arrival.

        Returns:
            Whose text was done, who has a new text (newcomers included), and who is new.
        """
        finished = taken & self.table.ended(self.text, self.row)
        leaves = self._leave(rng, finished, clock) if self._leaving else np.zeros_like(finished)
        self._open(finished & ~leaves, None)
        if not self._leaving:
            return finished, finished, leaves
        deserted = ~self.active.any(-1)
        np.copyto(clock, self.returns_at.min(-1), where=deserted)
        newcomers = ~self.active & (self.returns_at <= clock[:, None])
        if newcomers.any():
            self.settle(rng, newcomers)
        return finished, (finished & ~leaves) | newcomers, newcomers

    def _leave(self, rng: Generators, finished: Mask, clock: Floats) -> Mask:
        rows = np.asarray(finished.any(-1))
        if not rows.any():
            return finished
        chance = uniform(rng, self.shape, rows)
        absence = draw(rng, self.shape, lambda one, size: one.exponential(size=size), rows)
        leaves = finished & (chance < self._leaving)
        self.active = self.active & ~leaves
        back = clock[:, None] + self._absence * absence
        self.returns_at = np.where(leaves, back, self.returns_at)
        return leaves

    def _open(self, where: Mask, newcomers: Mask | None) -> None:
        """Users begin their next text."""
        if not where.any():
            return
        text = self.table.text(self.category, self._start, self._step, self._served)
        self.text = np.where(where, text, self.text)
        self.row = np.where(where, self.table.first[self.text], self.row)
        self._served = self._served + where
        for belief in (self.posterior, self.average):
            belief.begin(where, self.task, newcomers)


def _means(table: TextFacts, known: Mapping[str, float]) -> Floats:
    """Mean acceptance of each task, known beforehand or of these texts."""
    names = table.task_names
    unknown = sorted(set(known) - set(names))
    if unknown:
        raise DraftgymError(
            f"mean acceptance of an unknown task {unknown[0]!r}", f"there are {', '.join(names)}"
        )
    measured = table.task_acceptance()
    return np.array([known.get(n, m) for n, m in zip(names, measured, strict=True)])
