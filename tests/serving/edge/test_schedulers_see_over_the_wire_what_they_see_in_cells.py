"""The same history gives the same observations and plans, in an environment and over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from draftgym.decoding.arms import parse_arm
from draftgym.decoding.model.target import Target
from draftgym.decoding.observers.observation import Observation
from draftgym.drafters.ngram.drafter import NgramDrafter
from draftgym.envs.cell.cell import Cell
from draftgym.envs.cell.live import LiveTable
from draftgym.envs.cell.settings import CellSettings
from draftgym.envs.cell.state import CellState
from draftgym.envs.scheduler.observation import CELL_FEATURES, USER_FEATURES, observe_cell
from draftgym.envs.scheduler.planners import CellPlanner, LearnedPlanner, RulePlanner
from draftgym.policies.multispin.problem import Plan
from draftgym.policies.schedulers.learned import TILTS, LearnedScheduler, SchedulerHead
from draftgym.rollouts.decode.batched import Request
from draftgym.serving.edge.devices.device import EdgeDevice
from draftgym.serving.edge.devices.writing import Text, Written
from tests.serving.edge.edges import (
    ARMS,
    LENGTH,
    SETTINGS,
    Gathered,
    SetClock,
    serving,
    text,
)
from tests.tiny import tiny_small_lm

USERS = 3
MEANS = {"chat/small:4": 0.3, "code/small:4": 0.5, "chat/ngram:4": 0.7, "code/ngram:4": 0.6}
STILL = replace(SETTINGS.edge, radio=replace(SETTINGS.edge.radio, doppler_hz=0.0))
CELL: CellSettings = replace(
    SETTINGS, setting=STILL, users=USERS, means=MEANS, leaving=1.0, absence=1e9
)
"""Everybody writes a text and leaves; channels differ and stand still."""


@dataclass
class Seen:
    """What a scheduler saw before each round, and planned."""

    observations: list[Observation] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)


def tilting() -> Callable[[CellState], CellPlanner]:
    """A network that sets beliefs and tilts the reports of channels, each by its own."""
    torch.manual_seed(3)
    head = SchedulerHead(TILTS, 4, USER_FEATURES, CELL_FEATURES)
    network = head.network(16)
    with torch.no_grad():
        network.outputs.weight.mul_(4.0)
        network.outputs.bias[0] = 1.0  # believes in much
    return partial(LearnedPlanner, LearnedScheduler(network, head))


PLANNERS: dict[str, Callable[[CellState], CellPlanner]] = {
    "fixed": partial(RulePlanner, "fixed"),
    "heterogeneous@beta": partial(RulePlanner, "heterogeneous@beta"),
    "tilts": tilting(),
}


class Watched:
    """Keeps what a planner sees; time goes on behind each plan as it did elsewhere."""

    def __init__(
        self, name: str, cell: CellState, seen: Seen, clock: Any, ends: list[float]
    ) -> None:
        self.planner, self.cell = PLANNERS[name](cell), cell
        self.learn = self.planner.learn
        self._seen, self._clock, self._ends = seen, clock, ends

    def plan(self) -> Plan:
        """Its plan."""
        self._seen.observations.append(observe_cell(self.cell))
        self._seen.plans.append(self.planner.plan())
        if self._clock is not None:
            self._clock.seconds = self._ends[len(self._seen.plans) - 1]
        return self._seen.plans[-1]


def device_of(edge: Any, target: Target, name: str, snr: float, seconds: float) -> EdgeDevice:
    device = edge.device(target, name, snr_db=lambda: snr, token_seconds=seconds)
    if name == "ngram":
        device.drafting = replace(device.drafting, drafter=NgramDrafter())
    return device


def a_cell(target: Target, temperature: float) -> Cell:
    """An environment's cell whose texts are written while it is played."""
    drafters = {"small": tiny_small_lm(target), "ngram": NgramDrafter()}
    requests = [
        Request(f"{i}", ("chat", "code")[i % 2], temperature, i, torch.tensor(text(i).prompt))
        for i in range(6)
    ]
    table = LiveTable(target, drafters, list(map(parse_arm, ARMS)), requests, LENGTH)
    cell = Cell(table, CELL)
    cell.reset(np.random.default_rng(5))
    assert len(set(cell.users.arm[0].tolist())) == 2
    return cell


def devices_like(cell: Cell) -> list[tuple[Text, str, float, float]]:
    """What the users of a cell read and draft with, their channels (decibels) and speeds."""
    table, users = cell.table, cell.users
    assert isinstance(table, LiveTable)
    found = []
    for place in range(USERS):
        request = table.requests[int(users.text[0, place])]
        asked = request.prompt.tolist(), LENGTH, request.temperature, request.seed
        decibels = float(10 * np.log10(cell.reported[0, place]))
        name = table.arms[int(users.arm[0, place])].drafter
        seconds = float(users.token_seconds[0, place])
        found.append((Text(*asked, request.category), name, decibels, seconds))
    return found


def played(cell: Cell, name: str) -> tuple[Seen, list[float]]:
    """What a scheduler sees until everybody has gone, and when each round ended."""
    seen, ends = Seen(), list[float]()
    planner = Watched(name, cell, seen, None, [])
    while True:
        done = cell.step(planner.plan())
        planner.learn(done)
        ends.append(float(cell.clock[0] - done.idle[0]))
        if done.newcomers.any():
            return seen, ends


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", PLANNERS)
def test_the_same_history_is_seen_alike(target: Target, name: str, temperature: float) -> None:
    cell = a_cell(target, temperature)
    devices = devices_like(cell)
    there, ends = played(cell, name)
    here, clock = Seen(), SetClock()
    written: list[Written] = []

    def write(device: EdgeDevice, asked: Text) -> None:
        written.append(device.write(asked))
        device.close()

    def watch(one: CellState) -> Watched:
        return Watched(name, one, here, clock, ends)

    with serving(target, watch, USERS, clock=clock, settings=CELL, rounds_of=Gathered) as edge:
        threads = []
        for place, (asked, *its) in enumerate(devices):
            work = partial(write, device_of(edge, target, *its), asked)
            threads.append(threading.Thread(target=work))
            threads[-1].start()
            while len(edge.rounds._opening) + len(edge.rounds.members) <= place:
                threading.Event().wait(0.01)
        for thread in threads:
            thread.join()
    assert [len(one.tokens) for one in written] == [LENGTH] * USERS
    assert len(here.plans) == len(there.plans)
    for one, other in zip(here.observations, there.observations, strict=True):
        for part in one:
            np.testing.assert_allclose(one[part], other[part], rtol=1e-3, atol=1e-4, err_msg=part)
    close = 1e-2 if name == "tilts" else 1e-6  # a network's shares follow what it sees
    for mine, its_plan in zip(here.plans, there.plans, strict=True):
        np.testing.assert_array_equal(mine.lengths, its_plan.lengths)
        np.testing.assert_allclose(mine.shares, its_plan.shares, rtol=close)
    assert max(int(plan.lengths.max()) for plan in here.plans) > 1
