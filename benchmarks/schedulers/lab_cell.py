"""The environment of one lab: its devices, texts and channels, in the places that they have there.

Cells of `draftgym/Scheduler-v0` draw who comes, what is read and how channels fade. A lab is one
such cell whose every draw is known: device k drafts with its drafter at its speed, reads its
prompts in its order, and follows its recording from the beginning. Only time is left to models.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import ArrayLike

from draftgym.agents.scheduler.totals import CellTotals, count_rounds
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.cell import Cell, CellRound
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.texts import ChainTable, Ints, Mask
from draftgym.envs.cell.users import Users
from draftgym.envs.radio.channel import Generators
from draftgym.envs.radio.channel_trace import TraceChannel
from draftgym.envs.radio.radio import Band
from draftgym.envs.scheduler.planners import MakePlanner
from draftgym.policies.multispin.uplink import Floats
from draftgym.rollouts.traces.trace import TraceSet


@dataclass(frozen=True)
class LabDevice:
    """A device of a lab.

    Attributes:
        drafter: What it drafts with.
        token_seconds: Seconds per drafted token.
        question_ids: What it reads, in order, again and again.
    """

    drafter: str
    token_seconds: float
    question_ids: Sequence[str]


class LabTable(ChainTable):
    """Traced texts, read in the order of a lab's devices.

    Args:
        traces: The texts.
        devices: The devices; place k is device k's.

    Raises:
        DraftgymError: A prompt was not traced.
    """

    def __init__(self, traces: TraceSet, devices: Sequence[LabDevice]) -> None:
        super().__init__(traces)
        index = {name: place for place, name in enumerate(self.question_ids.tolist())}
        asked = [name for one in devices for name in one.question_ids]
        missing = [name for name in asked if name not in index]
        if missing:
            raise DraftgymError(
                f"these traces have no text for prompt {missing[0]!r}",
                "trace the prompts that the lab's devices read",
            )
        self.order = [np.array([index[name] for name in one.question_ids]) for one in devices]
        kinds = [self.categories.index(text.category) for text in self.texts]
        self.kinds = np.array(kinds)

    def text(self, category: Ints, start: Ints, step: Ints, served: Ints) -> Ints:
        """The text that a device reads next; see `TextFacts.text`."""
        counts = served[0].tolist()
        picked = [mine[n % len(mine)] for mine, n in zip(self.order, counts, strict=True)]
        return np.array([picked])


@dataclass(frozen=True)
class LabBand(Band):
    """A band beside which everybody has a control channel.

    Attributes:
        least: Bits per second that a device may send at any share.
    """

    least: float = 0.0

    def rate(self, snr: ArrayLike, share: ArrayLike) -> Floats:
        """See `Band.rate`."""
        return np.maximum(super().rate(snr, share), self.least)


class LabUsers(Users):
    """Users whose texts are of changing categories, as a lab's are."""

    table: LabTable

    def _open(self, where: Mask, newcomers: Mask | None) -> None:
        text = self.table.text(self.category, self._start, self._step, self._served)
        self.category = np.where(where, self.table.kinds[text], self.category)
        self.task = self.table.task(self.arm, self.category)
        super()._open(where, newcomers)


class LabCell(Cell):
    """The cell of a lab.

    Args:
        table: Its texts.
        settings: What it is made of, the devices' recordings among them.
        devices: The devices.
        least: Bits per second that each may send at any share.
    """

    table: LabTable

    def __init__(
        self,
        table: LabTable,
        settings: CellSettings,
        devices: Sequence[LabDevice],
        least: float = 0.0,
    ) -> None:
        super().__init__(table, settings)
        self.band = LabBand(self.band.hertz, self.band.noise_grows, least)
        self.users = LabUsers(table, settings, 1, 1 / self.pass_seconds)
        self._devices = devices

    def reset(self, rng: Generators, rows: Mask | None = None) -> None:
        """Every device is at its first text, and its recording begins."""
        super().reset(rng, rows)
        everybody, names = np.ones(self.shape, bool), [arm.drafter for arm in self.table.arms]
        arm = np.array([[names.index(one.drafter) for one in self._devices]])
        seconds = np.array([[one.token_seconds for one in self._devices]])
        self.users.seat(everybody, arm, np.zeros_like(arm), seconds)
        assert isinstance(self.channel, TraceChannel)  # a lab has recordings
        self.channel.which = np.arange(len(self._devices))[None]
        self.channel.elapsed = np.zeros(self.shape)
        self.reported = self.report.take(self.rng, self.channel.snr, everybody, np.ones(1, bool))
        self.clock = self.clock + self._reading(everybody)
        self.uploads.free(everybody, np.broadcast_to(self.clock[:, None], self.shape))


def plan_seconds(make: MakePlanner, cell: LabCell, rounds: int = 40, pause: float = 0.05) -> float:
    """Seconds that a plan takes here, the median of some rounds: a server plans by the same code.

    Args:
        make: Who plans.
        cell: The cell; it is reset.
        rounds: How many.
        pause: Seconds of rest before each; a server rests while devices draft.
    """
    cell.reset(np.random.default_rng(0))
    planner, taken = make(cell), []
    for _ in range(rounds):
        time.sleep(pause)
        begin = time.perf_counter()
        plan = planner.plan()
        taken.append(time.perf_counter() - begin)
        planner.learn(cell.step(plan))
    return median(taken)


def play_seconds(make: MakePlanner, cell: LabCell, seconds: float) -> tuple[CellTotals, int]:
    """Plays for a time; what was done within it, and in how many rounds.

    Args:
        make: Who plans.
        cell: The cell.
        seconds: How long.
    """
    cell.reset(np.random.default_rng(0))
    planner, played = make(cell), list[CellRound]()
    while True:
        last = cell.step(planner.plan())
        if cell.clock[0] > seconds:
            return count_rounds(played, len(cell.table.arms)), len(played)
        planner.learn(last)
        played.append(last)
